"""The demo camera's picture: a conveyor belt, parcels on it, the detector's boxes around them, a name and a clock.

Everything follows from the time, so that two viewers see the same frame and the inference routes can tell where the
parcels are. No clock in here: the caller says what time it is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from tunnel.agent.demo import font
from tunnel.agent.demo.jpeg import TILE, Encoder

WIDTH: Final = 480
HEIGHT: Final = 320
FRAMES_PER_SECOND: Final = 15
SPEED: Final = 4  # pixels a frame: 60 a second
BELT_TOP, BELT_BOTTOM = 232, 264
SPACING: Final = 176
LABELS: Final = ("parcel", "bottle", "tray", "can")

_INK, _DIM = 235, 150
_GREEN, _AMBER, _TEAL = (54, 34), (60, 190), (150, 90)  # Cb, Cr


@dataclass(frozen=True, slots=True)
class Item:
    """One thing on the belt, as the detector reports it: pixels from the top left corner."""

    label: str
    confidence: float
    x: int
    y: int
    width: int
    height: int


def items_at(frame: int) -> list[Item]:
    """What is wholly or partly in the picture in frame number `frame`, from left to right."""
    offset = frame * SPEED
    first = (offset - WIDTH) // SPACING
    found = []
    for number in range(offset // SPACING, first - 1, -1):
        facts = random.Random(number)  # noqa: S311 - a picture, not a secret
        width, height = facts.randrange(48, 96, 8), facts.randrange(48, 112, 8)
        x = offset - number * SPACING - width
        confidence = facts.randrange(81, 99) / 100
        if -width < x < WIDTH:
            found.append(Item(facts.choice(LABELS), confidence, x, BELT_TOP - height, width, height))
    return found


class Camera:
    """Draws frames; keeps the last one, so that ten viewers cost as much as one."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self._encoder = Encoder(WIDTH, HEIGHT)
        self._background = self._draw_background()
        self._last: tuple[tuple[int, int], bytes] = ((-1, -1), b"")

    def frame_number(self, now: float) -> int:
        """The number of the frame that is shown at `now`, in seconds since the epoch."""
        return int(now * FRAMES_PER_SECOND) + self.number * 97

    def frame(self, now: float) -> bytes:
        """The JPEG file shown at `now`."""
        number = self.frame_number(now)
        key = (number, int(now))
        if self._last[0] != key:
            self._last = (key, self._draw(number, now))
        return self._last[1]

    def _draw_background(self) -> _Canvas:
        canvas = _Canvas()
        for y in range(0, HEIGHT, TILE):
            canvas.box(0, y, WIDTH, TILE, 34 + y // 6)
        canvas.box(0, BELT_TOP, WIDTH, BELT_BOTTOM - BELT_TOP, 52)
        canvas.box(0, BELT_TOP, WIDTH, 3, 120)
        canvas.box(0, 0, WIDTH, 32, 22)
        canvas.tint(0, 0, WIDTH, 32, _TEAL)
        canvas.text(12, 9, self.name[:24], 2, _INK)
        canvas.text(WIDTH - 12 * 9 - 12, 9, f"CAMERA {self.number}", 2, _DIM)
        canvas.box(0, HEIGHT - 32, WIDTH, 32, 22)
        return canvas

    def _draw(self, number: int, now: float) -> bytes:
        canvas = self._background.copy()
        for x in range(-32 + number * SPEED % 32, WIDTH, 32):
            canvas.box(x, BELT_TOP + 14, 12, 4, 96)
        for item in items_at(number):
            self._draw_item(canvas, item)
        clock = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S")
        canvas.text(12, HEIGHT - 23, clock, 2, _INK)
        canvas.text(WIDTH - 12 * 9 - 12, HEIGHT - 23, f"#{number % 10**8:08d}", 2, _DIM)
        return self._encoder.encode(canvas.luma, canvas.blue, canvas.red)

    def _draw_item(self, canvas: _Canvas, item: Item) -> None:
        canvas.box(item.x, item.y, item.width, item.height, 170)
        canvas.box(item.x, item.y, item.width, 6, 198)
        canvas.box(item.x + item.width // 2 - 4, item.y, 8, item.height, 140)
        canvas.tint(item.x, item.y, item.width, item.height, _AMBER)
        left, top, right, bottom = item.x - 6, item.y - 6, item.x + item.width + 6, BELT_TOP + 4
        for edge in ((left, top, right - left, 2), (left, bottom, right - left, 2)):
            canvas.box(*edge, 215)
        for edge in ((left, top, 2, bottom - top), (right - 2, top, 2, bottom - top)):
            canvas.box(*edge, 215)
        tag = f"{item.label} {item.confidence:.2f}"
        canvas.box(left, top - 18, 12 * len(tag) + 6, 18, 60)
        canvas.tint(left, top - 18, 12 * len(tag) + 6, 18, _GREEN)
        canvas.text(left + 4, top - 16, tag, 2, _INK)


class _Canvas:
    """Three planes: luma by pixel, two colours by tile. Whatever lies outside is left out."""

    def __init__(self) -> None:
        tiles = (WIDTH // TILE) * (HEIGHT // TILE)
        self.luma = bytearray(WIDTH * HEIGHT)
        self.blue, self.red = bytearray(b"\x84" * tiles), bytearray(b"\x7e" * tiles)

    def copy(self) -> _Canvas:
        twin = _Canvas.__new__(_Canvas)
        twin.luma, twin.blue, twin.red = self.luma[:], self.blue[:], self.red[:]
        return twin

    def box(self, x: int, y: int, width: int, height: int, value: int) -> None:
        left, right = max(0, x), min(WIDTH, x + width)
        if left >= right:
            return
        line = bytes((value,)) * (right - left)
        for start in range(max(0, y) * WIDTH, min(HEIGHT, y + height) * WIDTH, WIDTH):
            self.luma[start + left : start + right] = line

    def tint(self, x: int, y: int, width: int, height: int, colour: tuple[int, int]) -> None:
        """Colour the tiles whose middle lies inside."""
        columns = WIDTH // TILE
        half = TILE // 2
        left, right = max(0, (x + half - 1) // TILE), min(columns, (x + width + half) // TILE)
        if left >= right:
            return
        for row in range(max(0, (y + half - 1) // TILE), min(HEIGHT // TILE, (y + height + half) // TILE)):
            tiles = slice(row * columns + left, row * columns + right)
            self.blue[tiles] = bytes((colour[0],)) * (right - left)
            self.red[tiles] = bytes((colour[1],)) * (right - left)

    def text(self, x: int, y: int, text: str, size: int, value: int) -> None:
        for left, top, length in _runs(text):
            self.box(x + left * size, y + top * size, length * size, size, value)


_runs = lru_cache(maxsize=256)(font.runs)
