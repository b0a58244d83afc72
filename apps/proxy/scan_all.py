"""A scan of every online device at once: `/api/devices/scan?device_id=all`.

Each device has its own time, all together a bounded one, and one that fails costs its own result alone. What came is
stored when all are done, in the request's own thread: the threads that ask boxes touch no database.
"""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final

import structlog
from django.conf import settings

from apps.common.db.connections import release_database
from apps.common.errors import DomainError
from apps.common.limits.places import Places
from apps.devices import selectors as devices
from apps.devices import services
from apps.devices.models import Accelerator, Device
from apps.proxy.exchanges import engine
from apps.proxy.scan import SCAN_PATH
from apps.proxy.selectors import as_route
from apps.tunnels import registry
from apps.tunnels.box_call import Call, CallFailed, Reply, Until, call_box
from apps.tunnels.route import Route

logger = structlog.get_logger(__name__)

DEVICE_SECONDS: Final = 10.0
"""What one box may take for its answer."""
TOTAL_SECONDS: Final = 30.0
"""What the whole scan may take; boxes whose turn did not come by then are told as timed out."""
AT_ONCE: Final = 16
"""Boxes asked at once by one scan."""
SCANS_AT_ONCE: Final = 4
"""Scans of all in one process, of one user three; each holds one of its threads for TOTAL_SECONDS at most."""
WAIT_SECONDS: Final = 2.0
_room: Final = Places("scans", lambda: SCANS_AT_ONCE)


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one device's scan; `error` is a code of api.md, empty if it went well."""

    device_id: uuid.UUID
    accelerators: Sequence[Accelerator] = ()
    error: str = ""


def scan_all(owner_id: uuid.UUID, *, method: str, request_id: str, now: dt.datetime) -> list[Found]:
    """Ask every online device of the owner, and store what they found. By device id; empty if none is online.

    Raises DomainError OVERLOADED where too many such scans run, and the errors of Redis and PostgreSQL.
    """
    online = registry.lookup_user(str(owner_id))
    boxes = list(devices.devices_of(owner_id).filter(id__in=list(online)).order_by("id")) if online else []
    if not boxes:
        return []
    release_database()
    with _room.place(str(owner_id), seconds=WAIT_SECONDS) as free:
        if not free:
            raise DomainError("OVERLOADED", retry_after=5)
        routes = [as_route(online[str(box.pk)]) for box in boxes]
        answers = _ask_all(routes, method=method, request_id=request_id)
    return [_kept(box, answer, now) for box, answer in zip(boxes, answers, strict=True)]


def _ask_all(routes: Sequence[Route], *, method: str, request_id: str) -> list[Reply | CallFailed]:
    """Each box's answer, or why there is none, in their order."""
    deadline = time.monotonic() + TOTAL_SECONDS
    executor = ThreadPoolExecutor(min(AT_ONCE, len(routes)), thread_name_prefix="scan")
    try:
        asked = [executor.submit(_ask, route, method, request_id, deadline) for route in routes]
        wait(asked, timeout=TOTAL_SECONDS + 1)
        return [_answer_of(each) for each in asked]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _answer_of(asked: Future[Reply | CallFailed]) -> Reply | CallFailed:
    return asked.result() if asked.done() else CallFailed("TUNNEL_TIMEOUT", "its turn did not come")


def _ask(route: Route, method: str, request_id: str, deadline: float) -> Reply | CallFailed:
    until = min(deadline, time.monotonic() + DEVICE_SECONDS)
    call = Call(method, SCAN_PATH.decode("ascii"), request_id)
    try:
        return call_box(
            route, call, control=Until(until), limits=engine.limits(), secret=settings.VISIONA["INTERNAL_SECRET"][0]
        )
    except CallFailed as error:
        return error


def _kept(box: Device, answer: Reply | CallFailed, now: dt.datetime) -> Found:
    """Store a good answer."""
    if isinstance(answer, CallFailed):
        logger.info("scan_failed", device=str(box.pk), code=answer.code, problem=str(answer))
        return Found(box.pk, error=answer.code)
    payload = _payload(answer)
    if payload is None:
        logger.info("scan_failed", device=str(box.pk), code="AGENT_BAD_RESPONSE", status=answer.status)
        return Found(box.pk, error="AGENT_BAD_RESPONSE")
    return Found(box.pk, services.store_scan(box, payload, now))


def _payload(answer: Reply) -> Any:
    """The JSON of an answer that says what it found; None if it does not."""
    if not 200 <= answer.status < 300 or answer.value("content-encoding"):
        return None
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
