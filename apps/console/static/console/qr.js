// A QR code of a short text (ISO/IEC 18004): byte mode, error correction level L, versions 1 to 10, mask 0.

// Per version: [error correction codewords a block, [blocks, data codewords a block], ...]
const BLOCKS = [
  null, [7, [1, 19]], [10, [1, 34]], [15, [1, 55]], [20, [1, 80]], [26, [1, 108]],
  [18, [2, 68]], [20, [2, 78]], [24, [2, 97]], [30, [2, 116]], [18, [2, 68], [2, 69]],
];
const ALIGNMENT = [null, [], [6, 18], [6, 22], [6, 26], [6, 30], [6, 34], [6, 22, 38], [6, 24, 42], [6, 26, 46], [6, 28, 50]];

// The field GF(256) over x^8 + x^4 + x^3 + x^2 + 1.
const EXP = new Uint8Array(512);
const LOG = new Uint8Array(256);
for (let power = 0, value = 1; power < 255; power += 1) {
  EXP[power] = EXP[power + 255] = value;
  LOG[value] = power;
  value = value & 0x80 ? (value << 1) ^ 0x11d : value << 1;
}
const times = (a, b) => (a && b ? EXP[LOG[a] + LOG[b]] : 0);

function correction(data, count) {
  let generator = [1];
  for (let root = 0; root < count; root += 1) {
    const next = new Array(generator.length + 1).fill(0);
    generator.forEach((factor, at) => {
      next[at] ^= factor;
      next[at + 1] ^= times(factor, EXP[root]);
    });
    generator = next;
  }
  const rest = [...data, ...new Array(count).fill(0)];
  for (let at = 0; at < data.length; at += 1) {
    const lead = rest[at];
    if (lead) generator.forEach((factor, offset) => { rest[at + offset] ^= times(factor, lead); });
  }
  return rest.slice(data.length);
}

function codewords(bytes) {
  const version = BLOCKS.findIndex((entry, at) => entry && capacity(at) >= bytes.length + (at > 9 ? 3 : 2));
  if (version < 0) throw new Error("The text is too long for this QR code.");
  const bits = [];
  const put = (value, width) => { for (let at = width - 1; at >= 0; at -= 1) bits.push((value >> at) & 1); };
  put(0b0100, 4);
  put(bytes.length, version > 9 ? 16 : 8);
  bytes.forEach((byte) => put(byte, 8));
  const total = capacity(version) * 8;
  put(0, Math.min(4, total - bits.length));
  put(0, (8 - (bits.length % 8)) % 8);
  for (let pad = 0; bits.length < total; pad += 1) put(pad % 2 ? 0x11 : 0xec, 8);
  const data = [];
  for (let at = 0; at < bits.length; at += 8) data.push(parseInt(bits.slice(at, at + 8).join(""), 2));
  return { version, stream: interleave(version, data) };
}

const capacity = (version) => BLOCKS[version].slice(1).reduce((sum, [count, size]) => sum + count * size, 0);

function interleave(version, data) {
  const [extra, ...groups] = BLOCKS[version];
  const blocks = [];
  let at = 0;
  groups.forEach(([count, size]) => {
    for (let n = 0; n < count; n += 1, at += size) blocks.push(data.slice(at, at + size));
  });
  const corrections = blocks.map((block) => correction(block, extra));
  const out = [];
  const longest = Math.max(...blocks.map((block) => block.length));
  for (let n = 0; n < longest; n += 1) blocks.forEach((block) => { if (n < block.length) out.push(block[n]); });
  for (let n = 0; n < extra; n += 1) corrections.forEach((block) => out.push(block[n]));
  return out;
}

function remainder(value, polynomial, degree) {
  let rest = value << degree;
  for (let bit = 31 - Math.clz32(rest); bit >= degree; bit = 31 - Math.clz32(rest)) rest ^= polynomial << (bit - degree);
  return rest;
}

function patterns(version, grid) {
  const size = grid.length;
  const square = (row, column, radius, dark) => {
    for (let y = -radius; y <= radius; y += 1) {
      for (let x = -radius; x <= radius; x += 1) {
        const line = grid[row + y];
        if (line && column + x >= 0 && column + x < size) line[column + x] = dark(Math.max(Math.abs(x), Math.abs(y)));
      }
    }
  };
  for (let n = 8; n < size - 8; n += 1) grid[6][n] = grid[n][6] = n % 2 === 0;
  [[3, 3], [3, size - 4], [size - 4, 3]].forEach(([y, x]) => square(y, x, 4, (ring) => ring !== 2 && ring !== 4));
  ALIGNMENT[version].forEach((y) => ALIGNMENT[version].forEach((x) => {
    const corner = (y === 6 && x === 6) || (y === 6 && x === size - 7) || (y === size - 7 && x === 6);
    if (!corner) square(y, x, 2, (ring) => ring !== 1);
  }));
  formats(version, grid);
}

function formats(version, grid) {
  const size = grid.length;
  const format = ((0b01000 << 10) | remainder(0b01000, 0x537, 10)) ^ 0x5412; // level L, mask 0
  for (let n = 0; n < 15; n += 1) {
    const dark = ((format >> n) & 1) === 1;
    const near = n < 6 ? n : n < 8 ? n + 1 : size - 15 + n;
    grid[near][8] = dark;
    const far = n < 8 ? size - 1 - n : n < 9 ? 15 - n : 14 - n;
    grid[8][far] = dark;
  }
  grid[size - 8][8] = true;
  if (version < 7) return;
  const info = (version << 12) | remainder(version, 0x1f25, 12);
  for (let n = 0; n < 18; n += 1) {
    const dark = ((info >> n) & 1) === 1;
    const [a, b] = [size - 11 + (n % 3), Math.floor(n / 3)];
    grid[a][b] = grid[b][a] = dark;
  }
}

/** The modules of the QR code of `text`, row by row; true is dark. */
export function qr(text) {
  const { version, stream } = codewords([...new TextEncoder().encode(text)]);
  const size = 17 + 4 * version;
  const grid = Array.from({ length: size }, () => new Array(size).fill(null));
  patterns(version, grid);
  let bit = 0;
  for (let right = size - 1; right > 0; right -= 2) {
    if (right === 6) right = 5;
    for (let step = 0; step < size; step += 1) {
      const upward = ((right + 1) & 2) === 0;
      const row = upward ? size - 1 - step : step;
      [right, right - 1].forEach((column) => {
        if (grid[row][column] !== null) return;
        const value = (stream[bit >> 3] >> (7 - (bit & 7))) & 1;
        grid[row][column] = (value === 1) !== ((row + column) % 2 === 0);
        bit += 1;
      });
    }
  }
  return grid;
}

/** Draws the QR code of `text` on a canvas, four pixels a module, with the quiet zone of four modules. */
export function drawQr(canvas, text) {
  const grid = qr(text);
  const side = (grid.length + 8) * 4;
  canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, side, side);
  pen.fillStyle = "#000";
  grid.forEach((line, y) => line.forEach((dark, x) => { if (dark) pen.fillRect((x + 4) * 4, (y + 4) * 4, 4, 4); }));
}
