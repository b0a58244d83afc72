"""What a scan found: the box's answer passes unchanged, a copy of it is read and its accelerators are stored.

`docs/box-api.md` fixes what a box answers: `{devices: [{serial, chip, usb_id, firmware, status}]}`. Whatever else it
says is its own business, so nothing here can spoil the answer.
"""

from __future__ import annotations

import json
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from typing import Final

import redis.exceptions
import structlog
from django.db import Error
from django.utils import timezone

from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.devices.services import store_scan

logger = structlog.get_logger(__name__)

SCAN_PATH: Final = b"/api/devices/scan"
"""The path of a scan, the same at the cloud and at the box."""
MAX_BYTES: Final = 1 << 20


class _Whole:
    """Bytes that are read as a socket's."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, _mode: str) -> BytesIO:
        """As a socket's."""
        return BytesIO(self._answer)


class ScanTap:
    """Reads a good JSON answer of up to MAX_BYTES, and stores its accelerators before the client has all of it."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def read(self, answer: bytes) -> None:
        """The whole answer as its client gets it. Only a 2xx one without a content coding is looked at.

        A database that is away costs the copy, not the answer.
        """
        try:
            parsed = HTTPResponse(_Whole(answer))  # type: ignore[arg-type]  # all that it asks of a socket
            parsed.begin()
            body = parsed.read(MAX_BYTES + 1)
            coded = parsed.getheader("Content-Encoding") is not None
            if coded or not 200 <= parsed.status < 300 or len(body) > MAX_BYTES:
                return
            payload = json.loads(body)
        except (HTTPException, ValueError, OSError, RecursionError):
            return
        try:
            store_scan(self._device, payload, timezone.now())
        except (Error, redis.exceptions.RedisError, DomainError) as error:
            logger.warning("scan_not_stored", device=str(self._device.pk), error=type(error).__name__)
