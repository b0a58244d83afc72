"""What the demo box's inference answers: results that match the picture, a stream of events, and routes for tests."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from typing import Any, Final

import trio

from tunnel.agent.demo.http import BadRequestError, Exchange
from tunnel.agent.demo.picture import HEIGHT, WIDTH, Camera, items_at

MODELS: Final[list[dict[str, Any]]] = [
    {
        "id": "conveyor-yolo5s",
        "name": "Conveyor YOLOv5s",
        "chip": "KL720",
        "input": [WIDTH, HEIGHT],
        "task": "detection",
    },
    {"id": "parcel-mobilenet", "name": "Parcel MobileNetV2", "chip": "KL520", "input": [224, 224], "task": "detection"},
]
MODEL_IDS: Final[tuple[str, ...]] = tuple(model["id"] for model in MODELS)
MAX_INPUT: Final = 16 * 1024 * 1024
MAX_BYTES: Final = 1 << 34
EVENT_SECONDS: Final = 0.5
BLOCK: Final = random.Random(3721).randbytes(65521)  # noqa: S311 - test bytes
"""What `/api/inference/bytes/{n}` repeats: of a prime length, so that it is noticed when blocks change places."""
_COUNT: Final = re.compile(r"[0-9]{1,12}\Z")


def result(camera: Camera, now: float, model: str, input_bytes: int = 0) -> dict[str, Any]:
    """One inference on the frame of `now`: boxes in pixels from the top left corner, confidence 0 to 1."""
    number = camera.frame_number(now)
    jitter = random.Random(number)  # noqa: S311 - a plausible figure
    boxes = [
        {"label": i.label, "confidence": i.confidence, "box": [i.x, i.y, i.width, i.height]}
        for i in items_at(number)
        if i.x >= 0 and i.x + i.width <= WIDTH
    ]
    return {
        "model": model,
        "camera": camera.number,
        "frame": number,
        "at": round(now, 3),
        "width": WIDTH,
        "height": HEIGHT,
        "input_bytes": input_bytes,
        "latency_ms": round(9 + 4 * jitter.random(), 2),
        "results": boxes,
    }


class Inference:
    """`/api/inference/*`."""

    def __init__(self, cameras: list[Camera]) -> None:
        self.cameras = cameras

    async def models(self, exchange: Exchange) -> None:
        """GET models."""
        await exchange.send_json(200, {"models": MODELS})

    async def run(self, exchange: Exchange) -> None:
        """POST run: a JSON object `{model?, camera?}`, or the bytes of a picture."""
        body = await exchange.read(MAX_INPUT)
        asked: Any = {}
        if (exchange.request.header("content-type") or "").startswith("application/json") and body:
            try:
                asked = json.loads(body)
            except ValueError:
                raise BadRequestError("the body is not JSON") from None
        await exchange.send_json(200, self.answer(asked, len(body)))

    def answer(self, asked: Any, input_bytes: int) -> dict[str, Any]:
        """The result for `{model?, camera?}`. Raises BadRequestError."""
        if not isinstance(asked, dict):
            raise BadRequestError("a JSON object is needed")
        model, camera = asked.get("model", MODEL_IDS[0]), asked.get("camera", 0)
        if model not in MODEL_IDS:
            raise BadRequestError("no such model", 404)
        if not isinstance(camera, int) or not 0 <= camera < len(self.cameras):
            raise BadRequestError("no such camera", 404)
        return result(self.cameras[camera], time.time(), str(model), input_bytes)

    async def events(self, exchange: Exchange) -> None:
        """GET events: server-sent events, one result twice a second, until the client leaves (or `?count=`)."""
        left = exchange.request.query.get("count", "")
        count = int(left) if _COUNT.match(left) else -1
        await exchange.start(200, "text/event-stream", None, ["Cache-Control: no-store"])
        number = 0
        while number != count:
            data = json.dumps(result(self.cameras[0], time.time(), MODEL_IDS[0]))
            await exchange.write(f"id: {number}\nevent: inference\ndata: {data}\n\n".encode())
            number += 1
            await trio.sleep(EVENT_SECONDS)
        await exchange.finish()

    async def echo(self, exchange: Exchange) -> None:
        """Any method: the body comes back piece by piece as it arrives, with its type and its length."""
        request = exchange.request
        length = request.header("content-length")
        kind = request.header("content-type") or "application/octet-stream"
        chunked = request.header("transfer-encoding") is not None
        first = await exchange.receive()
        await exchange.start(200, kind, None if chunked else int(length or 0))
        while first:
            await exchange.write(first)
            first = await exchange.receive()
        await exchange.finish()

    async def headers(self, exchange: Exchange) -> None:
        """The request as the box saw it: what a test of the way here wants to know."""
        request = exchange.request
        facts = {"method": request.method, "target": request.target, "headers": request.headers}
        await exchange.send_json(200, facts)

    async def sink(self, exchange: Exchange) -> None:
        """POST or PUT: the body's length and hash."""
        digest, size = hashlib.sha256(), 0
        while piece := await exchange.receive():
            digest.update(piece)
            size += len(piece)
        await exchange.send_json(200, {"bytes": size, "sha256": digest.hexdigest()})

    async def bytes(self, exchange: Exchange, count: str) -> None:
        """GET bytes/{n}: n bytes of BLOCK, repeated. `?chunked=1`: without a length; `?rate=`: bytes a second."""
        if not _COUNT.match(count) or int(count) > MAX_BYTES:
            raise BadRequestError("a number of bytes is needed")
        query, left = exchange.request.query, int(count)
        rate = query.get("rate", "")
        pause = len(BLOCK) / int(rate) if _COUNT.match(rate) and int(rate) else 0.0
        await exchange.start(200, "application/octet-stream", None if query.get("chunked") else left)
        if exchange.request.method != "HEAD":
            block = memoryview(BLOCK)
            while left > 0:
                await exchange.write(block[:left])
                left -= len(block)
                if pause:
                    await trio.sleep(pause)
        await exchange.finish()
