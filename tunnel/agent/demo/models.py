"""Models on the demo box: uploads that can be resumed. It keeps sizes and hashes, never the bytes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Final

from tunnel.agent.demo.http import BadRequestError, Exchange

MAX_MODELS: Final = 64
_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})\Z")


@dataclass(slots=True)
class Upload:
    """One model: `received` bytes of `size` (0: not known yet)."""

    size: int = 0
    received: int = 0
    writing: bool = False
    digest: Any = field(default_factory=hashlib.sha256)  # hashlib names no public type

    def facts(self, name: str) -> dict[str, Any]:
        done = self.size == self.received and not self.writing
        sha256 = self.digest.hexdigest() if done else None
        status = "ready" if done else "receiving"
        return {"id": name, "size": self.size, "received": self.received, "sha256": sha256, "status": status}


class ModelStore:
    """`PUT`, `HEAD`, `GET` and `DELETE` of `/api/models/{id}`."""

    def __init__(self) -> None:
        self._uploads: dict[str, Upload] = {}

    async def list(self, exchange: Exchange) -> None:
        """GET /api/models."""
        await exchange.send_json(200, {"models": [upload.facts(name) for name, upload in self._uploads.items()]})

    async def handle(self, exchange: Exchange, name: str) -> None:
        method = exchange.request.method
        if method == "PUT":
            await self._put(exchange, name)
            return
        upload = self._uploads.get(name)
        if upload is None:
            await exchange.send_error(404, "no such model", ["Upload-Offset: 0"] if method == "HEAD" else [])
        elif method == "DELETE":
            del self._uploads[name]
            await exchange.send_json(200, {"id": name})
        elif method in ("GET", "HEAD"):
            headers = [f"Upload-Offset: {upload.received}", f"Upload-Length: {upload.size}", "Cache-Control: no-store"]
            await exchange.send_json(200, upload.facts(name), headers)
        else:
            await exchange.send_error(405, "method not allowed", ["Allow: GET, HEAD, PUT, DELETE"])

    async def _put(self, exchange: Exchange, name: str) -> None:
        start, end, size = _content_range(exchange)
        upload = self._uploads.get(name)
        if upload is not None and upload.writing:
            await exchange.send_error(409, "another upload of this model is running")
            return
        if start == 0:
            if upload is None and len(self._uploads) >= MAX_MODELS:
                del self._uploads[next(iter(self._uploads))]
            upload = self._uploads[name] = Upload(size=size)
        if upload is None:
            await exchange.send_error(409, "the upload does not begin at its first byte", ["Upload-Offset: 0"])
            return
        if start != upload.received or size != upload.size:
            headers = [f"Upload-Offset: {upload.received}"]
            await exchange.send_error(409, "the range does not begin where the last one ended", headers)
            return
        upload.writing = True
        try:
            while piece := await exchange.receive():
                if end is not None and upload.received + len(piece) > end + 1:
                    raise BadRequestError("the body is longer than Content-Range says")
                upload.digest.update(piece)
                upload.received += len(piece)
        finally:
            upload.writing = False  # what has arrived stays: HEAD tells where to go on
        if end is None:
            upload.size = upload.received
        elif upload.received != end + 1:
            raise BadRequestError("the body is shorter than Content-Range says")
        complete = upload.received == upload.size
        await exchange.send_json(201 if complete else 200, upload.facts(name), [f"Upload-Offset: {upload.received}"])


def _content_range(exchange: Exchange) -> tuple[int, int | None, int]:
    """(first, last, total) of `Content-Range`, (0, None, 0) without one. Raises BadRequestError."""
    value = exchange.request.header("content-range")
    if value is None:
        length = exchange.request.header("content-length")
        return 0, None, int(length) if length and length.isdigit() else 0
    match = _RANGE.match(value)
    if match is None:
        raise BadRequestError("Content-Range cannot be read")
    first, last, total = (int(group) for group in match.groups())
    if not first <= last < total:
        raise BadRequestError("Content-Range does not make sense")
    return first, last, total
