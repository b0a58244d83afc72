"""A small baseline JPEG encoder (ITU T.81): 8-bit luma and one colour a tile, cheap enough to draw a live picture.

Pure Python needs milliseconds for each thousand tiles of 8 x 8 pixels, so work is not repeated: a tile's AC bits are
cached by its pixels, and a row of tiles is cached by its content. Rows are restart intervals, hence independent of
each other. Chroma is flat in a tile, which suits a drawn picture.
"""

from __future__ import annotations

import math
import struct
from typing import Final

TILE: Final = 8
MAX_TILES: Final = 8192
MAX_ROWS: Final = 256

ZIGZAG: Final = sorted(
    range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8))
)  # T.81 figure A.6: along the diagonals, turning at each end
QUANT: Final = [6 + 2 * (i // 8 + i % 8) for i in range(64)]
_COSINE: Final = [
    [(math.sqrt(0.125) if u == 0 else 0.5) * math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)]
    for u in range(8)
]

# Huffman tables are the encoder's own choice (T.81 Annex C): these follow from counts, so no table need be typed in.
# DC: the twelve size categories. AC: "end of block" in 2 bits, everything else in 8.
DC_COUNTS: Final = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
DC_SYMBOLS: Final = bytes(range(12))
AC_SYMBOLS: Final = bytes([0x00, *(run << 4 | size for run in range(16) for size in range(1, 11)), 0xF0])
AC_COUNTS: Final = bytes([0, 1, 0, 0, 0, 0, 0, len(AC_SYMBOLS) - 1, 0, 0, 0, 0, 0, 0, 0, 0])


def _codes(counts: bytes, symbols: bytes) -> dict[int, tuple[int, int]]:
    """Symbol → (code, bits), by T.81 C.2: codes of one length count up, a longer length doubles."""
    codes, code, position = {}, 0, 0
    for length, count in enumerate(counts, start=1):
        for symbol in symbols[position : position + count]:
            codes[symbol] = (code, length)
            code += 1
        position += count
        code <<= 1
    return codes


_DC: Final = _codes(DC_COUNTS, DC_SYMBOLS)
_AC: Final = _codes(AC_COUNTS, AC_SYMBOLS)
_END_OF_BLOCK: Final = _AC[0x00]


def _value_bits(value: int) -> tuple[int, int]:
    """The (bits, size category) of a coefficient, T.81 F.1.2.1: negative ones are stored less one."""
    size = abs(value).bit_length()
    return (value if value >= 0 else value + (1 << size) - 1), size


def _dc_bits(difference: int) -> tuple[int, int]:
    bits, size = _value_bits(difference)
    code, length = _DC[size]
    return code << size | bits, length + size


_DC_CACHE: Final = {difference: _dc_bits(difference) for difference in range(-1023, 1024)}


def transform(pixels: bytes) -> list[int]:
    """The 64 quantised coefficients of an 8 x 8 tile in zigzag order; the first is the DC."""
    rows = [[sum((pixels[8 * y + x] - 128) * cosine[x] for x in range(8)) for cosine in _COSINE] for y in range(8)]
    block = [sum(rows[y][u] * cosine[y] for y in range(8)) for cosine in _COSINE for u in range(8)]
    return [round(block[i] / QUANT[i]) for i in ZIGZAG]


def _ac_bits(coefficients: list[int]) -> tuple[int, int]:
    bits = length = run = 0
    for value in coefficients[1:]:
        if value == 0:
            run += 1
            continue
        while run > 15:
            code, width = _AC[0xF0]
            bits, length, run = bits << width | code, length + width, run - 16
        extra, size = _value_bits(value)
        code, width = _AC[run << 4 | size]
        bits, length, run = (bits << width | code) << size | extra, length + width + size, 0
    if run:
        bits, length = bits << _END_OF_BLOCK[1] | _END_OF_BLOCK[0], length + _END_OF_BLOCK[1]
    return bits, length


class Encoder:
    """Encodes pictures of one size, in pixels, both multiples of 8. Not for several threads at once."""

    def __init__(self, width: int, height: int) -> None:
        if width % TILE or height % TILE or not (0 < width <= 65528 and 0 < height <= 65528):
            raise ValueError("width and height must be multiples of 8")
        self.width, self.height = width, height
        self.columns, self.lines = width // TILE, height // TILE
        self._tiles: dict[tuple[bytes, ...], tuple[int, int, int]] = {}
        self._rows: dict[tuple[bytes, bytes, bytes], bytes] = {}
        self._head = self._make_head()

    def _make_head(self) -> bytes:
        def segment(marker: int, body: bytes) -> bytes:
            return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

        components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
        return b"".join(
            (
                b"\xff\xd8",
                segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
                segment(0xDB, b"\0" + bytes(QUANT[i] for i in ZIGZAG)),
                segment(0xC0, struct.pack(">BHHB", 8, self.height, self.width, 3) + components),
                segment(0xC4, b"\x00" + DC_COUNTS + DC_SYMBOLS),
                segment(0xC4, b"\x10" + AC_COUNTS + AC_SYMBOLS),
                segment(0xDD, struct.pack(">H", self.columns)),
                segment(0xDA, b"\x03" + b"".join(bytes([number, 0]) for number in (1, 2, 3)) + b"\0\x3f\0"),
            )
        )

    def encode(self, luma: bytes | bytearray, blue: bytes | bytearray, red: bytes | bytearray) -> bytes:
        """A whole JPEG file. `luma` has width x height bytes; `blue` and `red` (Cb, Cr; 128 is grey) one a tile."""
        if len(luma) != self.width * self.height or not len(blue) == len(red) == self.columns * self.lines:
            raise ValueError("the planes do not fit the size")
        strip, parts = self.width * TILE, [self._head]
        for line in range(self.lines):
            tiles = slice(line * self.columns, (line + 1) * self.columns)
            key = (bytes(luma[line * strip : (line + 1) * strip]), bytes(blue[tiles]), bytes(red[tiles]))
            row = self._rows.get(key)
            if row is None:
                if len(self._rows) >= MAX_ROWS:
                    self._rows.clear()
                row = self._rows[key] = self._encode_row(*key)
            parts.append(row)
            if line + 1 < self.lines:
                parts.append(bytes((0xFF, 0xD0 + line % 8)))
        parts.append(b"\xff\xd9")
        return b"".join(parts)

    def _encode_row(self, strip: bytes, blue: bytes, red: bytes) -> bytes:
        """One restart interval: entropy-coded, padded with ones, 0xFF stuffed (T.81 F.1.2.3)."""
        width = self.width
        scanlines = [[strip[y + x : y + x + 8] for x in range(0, width, 8)] for y in range(0, 8 * width, width)]
        bits, length, last_luma, last_blue, last_red = 0, 0, 0, 0, 0
        chunks: list[bytes] = []
        end_code, end_width = _END_OF_BLOCK
        for pieces, cb, cr in zip(zip(*scanlines, strict=True), blue, red, strict=True):
            dc, ac, ac_length = self._tiles.get(pieces) or self._tile(pieces)
            # A flat tile of value v has the DC 8 (v - 128)
            cb, cr = (cb - 128) * 8 // QUANT[0], (cr - 128) * 8 // QUANT[0]
            for code, size in (
                _DC_CACHE[dc - last_luma],
                (ac, ac_length),
                _DC_CACHE[cb - last_blue],
                (end_code, end_width),
                _DC_CACHE[cr - last_red],
                (end_code, end_width),
            ):
                bits, length = bits << size | code, length + size
            last_luma, last_blue, last_red = dc, cb, cr
            if length > 512:  # shifting a long integer is what costs: hand whole bytes on early
                rest = length % 8
                chunks.append((bits >> rest).to_bytes(length // 8, "big"))
                bits, length = bits & ((1 << rest) - 1), rest
        pad = -length % 8
        chunks.append((bits << pad | (1 << pad) - 1).to_bytes((length + pad) // 8, "big"))
        return b"".join(chunks).replace(b"\xff", b"\xff\0")

    def _tile(self, pieces: tuple[bytes, ...]) -> tuple[int, int, int]:
        if len(self._tiles) >= MAX_TILES:
            self._tiles.clear()
        coefficients = transform(b"".join(pieces))
        found = self._tiles[pieces] = (coefficients[0], *_ac_bits(coefficients))
        return found
