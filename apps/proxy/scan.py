"""What a scan found: the box's answer passes unchanged, a copy of it is read and its accelerators are stored.

`docs/box-api.md` fixes what a box answers: `{devices: [{serial, chip, usb_id, firmware, status}]}`. Whatever else it
says is its own business, so nothing here can spoil the answer.
"""

from __future__ import annotations

import json
from typing import Final

import redis.exceptions
import structlog
from django.db import Error
from django.utils import timezone

from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.devices.services import store_scan
from apps.tunnels.forwarder import AnswerHead, Buffer

logger = structlog.get_logger(__name__)

SCAN_PATH: Final = b"/api/devices/scan"
"""The path of a scan, the same at the cloud and at the box."""
MAX_BYTES: Final = 1 << 20


class ScanTap:
    """Copies the body of a good JSON answer up to MAX_BYTES, and stores its accelerators before the client has all."""

    def __init__(self, device: Device) -> None:
        self._device = device
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
        try:
            payload = json.loads(self._body)
        except (ValueError, RecursionError):
            return
        try:
            store_scan(self._device, payload, timezone.now())
        except (Error, redis.exceptions.RedisError, DomainError) as error:
            logger.warning("scan_not_stored", device=str(self._device.pk), error=type(error).__name__)
