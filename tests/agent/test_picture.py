"""The JPEG encoder against a decoder written from the other side of the standard, and the picture's behaviour."""

from __future__ import annotations

import itertools
import math
import random
import struct

import pytest

from tunnel.agent.demo import font
from tunnel.agent.demo.jpeg import ZIGZAG, Encoder
from tunnel.agent.demo.picture import FRAMES_PER_SECOND, HEIGHT, WIDTH, Camera, items_at

NOW = 1_800_000_000.0


def decode(file: bytes) -> tuple[int, int, list[list[int]], list[int], list[int]]:
    """A baseline JPEG with three unsampled components: width, height, luma rows, and each tile's Cb and Cr."""
    assert file[:2] == b"\xff\xd8"
    assert file[-2:] == b"\xff\xd9"
    position, tables, quant, size, interval = 2, {}, [], (0, 0), 0
    while True:
        marker, length = struct.unpack(">HH", file[position : position + 4])
        body = file[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == 0xFFDB:
            quant = list(body[1:65])
        elif marker == 0xFFC0:
            height, width = struct.unpack(">HH", body[1:5])
            size = width, height
        elif marker == 0xFFC4:
            tables[body[0] >> 4] = _table(body[1:17], body[17:])
        elif marker == 0xFFDD:
            interval = struct.unpack(">H", body)[0]
        elif marker == 0xFFDA:
            break
    width, height = size
    luma = [[0] * width for _ in range(height)]
    blue, red = [], []
    rows = _intervals(file[position:-2])
    assert len(rows) * interval * 64 == width * height
    for line, data in enumerate(rows):
        bits = iter("".join(f"{byte:08b}" for byte in data))
        last = [0, 0, 0]
        for column in range(interval):
            for component in range(3):
                block = _block(bits, tables, last, component)
                if component == 0:
                    _inverse([c * q for c, q in zip(block, quant, strict=True)], luma, column * 8, line * 8)
                else:
                    (blue, red)[component - 1].append(round(block[0] * quant[0] / 8) + 128)
        assert set(bits) <= {"1"}, "padding must be ones"
    return width, height, luma, blue, red


def _table(counts: bytes, symbols: bytes) -> dict[str, int]:
    found, code, position = {}, 0, 0
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            word = f"{code:0{length}b}"
            assert "0" in word, "a code of ones only is forbidden"
            found[word] = symbols[position]
            code, position = code + 1, position + 1
        code *= 2
    return found


def _intervals(scan: bytes) -> list[bytes]:
    found, current, i = [], bytearray(), 0
    while i < len(scan):
        if scan[i] == 0xFF:
            if scan[i + 1] != 0:
                assert scan[i + 1] == 0xD0 + len(found) % 8
                found.append(bytes(current))
                current.clear()
            else:
                current.append(0xFF)
            i += 2
        else:
            current.append(scan[i])
            i += 1
    return [*found, bytes(current)]


def _symbol(bits, table) -> int:
    word = ""
    while word not in table:
        word += next(bits)
    return table[word]


def _value(bits, size: int) -> int:
    if not size:
        return 0
    word = "".join(next(bits) for _ in range(size))
    return int(word, 2) if word[0] == "1" else int(word, 2) - (1 << size) + 1


def _block(bits, tables, last: list[int], component: int) -> list[int]:
    last[component] += _value(bits, _symbol(bits, tables[0]))
    block, k = [0] * 64, 1
    block[0] = last[component]
    while k < 64:
        symbol = _symbol(bits, tables[1])
        if symbol == 0:
            break
        k += symbol >> 4
        block[k] = _value(bits, symbol & 15)
        k += 1
    return block


def _inverse(zigzag: list[int], luma: list[list[int]], left: int, top: int) -> None:
    block = [0] * 64
    for value, place in zip(zigzag, ZIGZAG, strict=True):
        block[place] = value
    scale = [math.sqrt(0.5)] + [1.0] * 7
    for y in range(8):
        for x in range(8):
            value = sum(
                scale[u] * scale[v] * block[8 * v + u]
                * math.cos((2 * x + 1) * u * math.pi / 16) * math.cos((2 * y + 1) * v * math.pi / 16)
                for v in range(8) for u in range(8) if block[8 * v + u]
            ) / 4  # fmt: skip
            luma[top + y][left + x] = round(value + 128)


def test_the_zigzag_is_the_standards() -> None:
    assert ZIGZAG[:15] == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4]
    assert ZIGZAG[-3:] == [55, 62, 63]
    assert sorted(ZIGZAG) == list(range(64))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_decoder_sees_what_was_drawn(seed: int) -> None:
    rng = random.Random(seed)
    encoder = Encoder(32, 24)
    smooth = bytes(min(255, 60 + 3 * (i % 32) + 2 * (i // 32) + rng.randrange(8)) for i in range(32 * 24))
    blue, red = bytes(rng.randrange(256) for _ in range(12)), bytes(rng.randrange(256) for _ in range(12))
    width, height, luma, seen_blue, seen_red = decode(encoder.encode(smooth, blue, red))
    assert (width, height) == (32, 24)
    worst = max(abs(luma[i // 32][i % 32] - smooth[i]) for i in range(32 * 24))
    assert worst < 24
    assert max(abs(a - b) for a, b in zip([*seen_blue, *seen_red], [*blue, *red], strict=True)) <= 1


def test_noise_survives_too() -> None:
    rng = random.Random(4)
    noise = bytes(rng.randrange(256) for _ in range(16 * 16))
    _, _, luma, _, _ = decode(Encoder(16, 16).encode(noise, b"\x80" * 4, b"\x80" * 4))
    assert sum(abs(luma[i // 16][i % 16] - noise[i]) for i in range(256)) / 256 < 14


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (12, 8), (8, 65536)])
def test_sizes_it_does_not_take(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples"):
        Encoder(*size)


def test_planes_must_fit() -> None:
    with pytest.raises(ValueError, match="planes"):
        Encoder(8, 8).encode(bytes(63), b"\x80", b"\x80")


def test_the_picture_moves_and_is_shared() -> None:
    camera, other = Camera("Box", 0), Camera("Box", 1)
    assert camera.frame(NOW) is camera.frame(NOW + 0.001)
    assert camera.frame(NOW) != camera.frame(NOW + 1 / FRAMES_PER_SECOND)
    assert camera.frame(NOW) != other.frame(NOW)
    file = camera.frame(NOW)
    assert struct.pack(">HH", HEIGHT, WIDTH) in file[:800]
    assert len(file) < 40_000


def test_things_come_in_from_the_left_and_leave_on_the_right() -> None:
    number = camera_frame = Camera("Box", 0).frame_number(NOW)
    seen = [items_at(number + step) for step in range(200)]
    assert all(found for found in seen)
    for before, after in itertools.pairwise(seen):
        shared = {(i.label, i.width, i.height): i.x for i in before}
        for item in after:
            old = shared.get((item.label, item.width, item.height))
            assert old is None or item.x > old or abs(item.x - old) > 100
    assert camera_frame == number


def test_every_glyph_is_five_by_seven() -> None:
    for letter, rows in font.GLYPHS.items():
        assert len(rows) == font.HEIGHT, letter
        assert all(len(row) == font.WIDTH and set(row) <= {".", "#"} for row in rows), letter
    assert font.runs("?") == font.runs("\N{SNOWMAN}")
    assert font.runs("a") == font.runs("A")
