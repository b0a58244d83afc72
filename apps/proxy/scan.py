"""What a scan found: the box's answer passes unchanged, a copy of it is read and its accelerators are stored.

`docs/box-api.md` fixes what a box answers: `{devices: [{serial, chip, usb_id, firmware, status}]}`. Whatever else it
says is its own business, so nothing here can spoil the answer.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

import redis.exceptions
import structlog
from django.db import Error
from django.utils import timezone

from apps.proxy import services
from apps.tunnels.forwarder import AnswerHead, Buffer

logger = structlog.get_logger(__name__)

MAX_BYTES: Final = 1 << 20
MAX_FOUND: Final = 256


class ScanTap:
    """Keeps the body of a good JSON answer up to MAX_BYTES, and stores what it names before the client has its end."""

    def __init__(self, device_id: str) -> None:
        self._device_id = device_id
        self._body: bytearray | None = None

    def head(self, answer: AnswerHead) -> None:
        """Only a 2xx answer without a content coding is read."""
        coded = any(name.lower() == b"content-encoding" for name, _ in answer.fields)
        self._body = bytearray() if 200 <= answer.status < 300 and not coded else None

    def feed(self, piece: Buffer) -> None:
        """The next bytes."""
        if self._body is not None:
            self._body += piece
            if len(self._body) > MAX_BYTES:
                self._body = None

    def complete(self) -> None:
        """Store. A database that is away costs the copy, not the answer."""
        if not self._body:
            return
        found = read_scan(bytes(self._body))
        if found is None:
            return
        try:
            services.store_scan(device_id=uuid.UUID(self._device_id), found=found, now=timezone.now())
        except (Error, redis.exceptions.RedisError) as error:
            logger.warning("scan_not_stored", device=self._device_id, error=type(error).__name__)


def read_scan(body: bytes) -> list[dict[str, str]] | None:
    """The accelerators with a serial in a box's answer, each field as text; None if it is no such answer."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    # The prototype's boxes put their answer into an envelope.
    data = answer.get("data") if isinstance(answer, dict) and "devices" not in answer else answer
    devices = data.get("devices") if isinstance(data, dict) else data
    if not isinstance(devices, list):
        return None
    found: dict[str, dict[str, str]] = {}
    for item in devices[:MAX_FOUND]:
        if isinstance(item, dict) and (serial := _text(item.get("serial"), 128)):
            found[serial] = {
                "serial": serial,
                "chip": _text(item.get("chip"), 64),
                "usb_id": _text(item.get("usb_id"), 32),
                "firmware": _text(item.get("firmware"), 64),
                "status": _text(item.get("status"), 32),
            }
    return list(found.values())


def _text(value: Any, limit: int) -> str:
    """A field as text that PostgreSQL takes; empty for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).replace("\0", "").encode("utf-8", "replace").decode()[:limit]
