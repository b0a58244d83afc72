"""Finalizing where bytes may have to be read back: asked for by a call, carried by a worker, waited for a little.

    request   the model is `checking`, a row of `model_finalizations` is queued, a job wakes a worker: at once
    work      a worker claims what is queued, fairly among owners, and ends each: `ready`, or pending with an error
    wait      the call looks for the end for a few seconds; later calls of finalize are told it

A worker that dies leaves a row that beats no more; `rescue` queues it again. So is one that broke off unexpectedly, a
little later each time; what has broken off too often has failed. Each write of a worker names its `run`.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import structlog
from django.db import transaction
from django.db.models import Count, F, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from procrastinate.contrib.django import app as jobs

from apps.common.actor import Actor
from apps.common.db.connections import release_database
from apps.common.errors import DomainError, not_found
from apps.model_registry.finalization_models import Finalization, FinalizationStatus
from apps.model_registry.models import AIModel, ModelStatus
from apps.model_registry.selectors import models_of
from apps.storage import services as storage
from apps.storage.base import Mismatch, Promise, Stored

logger = structlog.get_logger(__name__)

TASK: Final = "model_registry.finalize"
WAIT_SECONDS: Final = 10.0
"""How long a call waits for the end (api.md, "Models"); then it is answered 202."""
WAITERS: Final = 8
"""Calls that wait at once in a process, each with a thread of it; the next are answered 202 at once."""
WAITERS_OF_ONE: Final = 2
AT_ONCE: Final = 3
"""Uploads that one worker process checks at once: its other threads are for jobs that are short."""
AT_ONCE_OF_ONE: Final = 2
"""Uploads of one owner that all workers together check at once."""
BEAT_SECONDS: Final = 5.0
STALE: Final = dt.timedelta(seconds=60)
"""A worker that was not heard of for so long has lost its check to another. One call on the store takes up to 44 s."""
ATTEMPTS: Final = 4
"""Checks of one upload that may break off, by what nobody expected or with their worker; then it has failed."""
BACKOFF: Final = dt.timedelta(seconds=5)
"""After the first that broke off; twice as long after each other."""
_PAUSES: Final = (0.02, 0.03, 0.05, 0.1, 0.1, 0.2)

Written = Callable[[Finalization, AIModel, Stored], None]
"""Writes that a model is ready: `services`' own. Raises DomainError where that is out of time."""


class Stopped(Exception):
    """The worker ends, or another has the row."""


# --- the caller's -----------------------------------------------------------------------------------------------------
def request(
    *,
    actor: Actor,
    owner_id: uuid.UUID,
    model_id: uuid.UUID,
    parts: Sequence[tuple[int, str]] | None,
    now: dt.datetime,
) -> Finalization | None:
    """Have the upload checked, or join the check that is under way. None: the model is ready already.

    Raises DomainError: NOT_FOUND, INVALID_STATE where nothing is being uploaded, and how the last check ended if
    nobody was told yet, since its caller was answered 202.
    """
    with transaction.atomic():
        model = models_of(owner_id).select_for_update(no_key=True).filter(id=model_id).first()
        if model is None:
            raise not_found()
        if model.status == ModelStatus.READY:
            return None
        if model.status not in (ModelStatus.PENDING, ModelStatus.CHECKING) or not model.upload_key:
            raise DomainError("INVALID_STATE", _("Nothing is being uploaded: begin with POST /api/models/init."))
        row = Finalization.objects.filter(model=model).first() or Finalization(model=model)
        same = row.upload_key == model.upload_key
        if same and model.status == ModelStatus.CHECKING and row.status != FinalizationStatus.FAILED:
            return row
        if not (same and row.status == FinalizationStatus.FAILED and not row.told):
            return _queue(row, model, actor, parts, now)
    raise _end_of(row)


def _queue(
    row: Finalization, model: AIModel, actor: Actor, parts: Sequence[tuple[int, str]] | None, now: dt.datetime
) -> Finalization:
    row.run += 1
    row.attempts = 0
    row.status, row.upload_key, row.queued_at, row.beat_at = FinalizationStatus.QUEUED, model.upload_key, now, None
    row.parts = None if parts is None else [list(part) for part in parts]
    row.actor, row.language = asdict(actor), translation.get_language() or ""
    row.error, row.told = None, False
    row.save()
    model.status = ModelStatus.CHECKING
    model.save(update_fields=["status", "updated_at"])
    wake()
    return row


def wait(row: Finalization) -> None:
    """Until the check has ended, for WAIT_SECONDS at most, and not at all where too many wait already.

    Raises DomainError as it ended, where it did not end well.
    """
    with _place(row.model.owner_id) as waits:
        until = time.monotonic() + (WAIT_SECONDS if waits else 0.0)
        for pause_seconds in _pauses():
            seen = Finalization.objects.filter(id=row.id).first()
            if seen is None or seen.run < row.run:  # ready, deleted, or begun anew
                return
            if seen.status == FinalizationStatus.FAILED:
                raise _end_of(seen)
            release_database()
            left = until - time.monotonic()
            if left <= 0:
                return
            pause(min(pause_seconds, left))


def pause(seconds: float) -> None:
    """Between two looks; tests work here instead."""
    time.sleep(seconds)


def _pauses() -> Iterator[float]:
    yield from _PAUSES
    while True:
        yield 0.5


def _end_of(row: Finalization) -> DomainError:
    """How it ended; from now on it counts as told."""
    Finalization.objects.filter(id=row.id, run=row.run).update(told=True)
    error = row.error or {"code": "INTERNAL_ERROR"}
    return DomainError(
        error["code"],
        error.get("message", ""),
        details=error.get("details"),
        retry_after=error.get("retry_after"),
    )


_waiting: Counter[uuid.UUID | None] = Counter()
_waiting_lock = threading.Lock()


@contextmanager
def _place(owner_id: uuid.UUID | None) -> Iterator[bool]:
    """Whether there is a place to wait: for few, and for fewer of one owner, since each is a thread of the API."""
    with _waiting_lock:
        waits = _waiting.total() < WAITERS and _waiting[owner_id] < WAITERS_OF_ONE
        if waits:
            _waiting[owner_id] += 1
    try:
        yield waits
    finally:
        if waits:
            with _waiting_lock:
                _waiting[owner_id] -= 1
                if not _waiting[owner_id]:
                    del _waiting[owner_id]


# --- the worker's -----------------------------------------------------------------------------------------------------
def wake() -> None:
    """Have a worker look at what is queued, once the caller's transaction is committed."""
    jobs.configure_task(TASK).defer()


_places = threading.BoundedSemaphore(AT_ONCE)


def work(*, leaving: Callable[[], bool], write: Written) -> int:
    """Check what is queued until there is nothing that may be begun; how many. Without a place: those who have one do.

    Args:
        leaving: whether this worker is to end.
    """
    if not _places.acquire(blocking=False):
        return 0
    count = 0
    try:
        while not leaving() and (row := _claim(timezone.now())) is not None:
            count += 1
            _carry(row, leaving, write)
    finally:
        _places.release()
        release_database()
    return count


@transaction.atomic
def _claim(now: dt.datetime) -> Finalization | None:
    """The one to check next: of the owner who has the fewest under way, the oldest. None: there is none."""
    running = Finalization.objects.filter(status=FinalizationStatus.RUNNING)
    shares = dict(running.values_list("model__owner").annotate(Count("id")))
    full = [owner for owner, count in shares.items() if count >= AT_ONCE_OF_ONE]
    queued = Finalization.objects.filter(_due(now)).exclude(model__owner__in=full)
    idle = queued.exclude(model__owner__in=list(shares))
    for rows in (idle, queued):
        row = rows.select_for_update(skip_locked=True, of=("self",)).order_by("queued_at").first()
        if row is not None:
            row.run += 1
            row.attempts += 1
            row.status = FinalizationStatus.RUNNING
            Finalization.objects.filter(id=row.id).update(
                run=row.run, attempts=row.attempts, status=row.status, beat_at=Now(), updated_at=now
            )
            return row
    return None


def _due(now: dt.datetime) -> Q:
    """What waits for a worker. The first time at once: the API's clock and a worker's may differ."""
    return Q(status=FinalizationStatus.QUEUED) & (Q(attempts=0) | Q(queued_at__lte=now))


def _carry(row: Finalization, leaving: Callable[[], bool], write: Written) -> None:
    """To its end, or back to the queue."""
    began = time.monotonic()
    model = AIModel.objects.filter(id=row.model_id, upload_key=row.upload_key, status=ModelStatus.CHECKING).first()
    if model is None:  # begun anew or deleted meanwhile
        _held(row).delete()
        return
    promise = Promise(model.upload_key, model.object_key, model.size, model.sha256, timezone.now())
    parts = None if row.parts is None else [(int(number), str(etag)) for number, etag in row.parts]
    release_database()
    outcome = "ready"
    with translation.override(row.language or None):
        try:
            stored = storage.store().settle(
                promise, upload_id=model.upload_id, parts=parts, progress=_Beat(row, leaving)
            )
            write(row, model, stored)
        except Stopped:
            _give_back(row)
            outcome = "given back"
        except Mismatch as error:
            outcome = _fail(row, DomainError("INVALID_STATE", str(error)))
        except DomainError as error:
            outcome = _fail(row, error)
        except Exception:
            logger.exception("model_check_broke_off", model=str(row.model_id), attempt=row.attempts)
            outcome = _break_off(row, timezone.now())
    seconds = round(time.monotonic() - began, 3)
    logger.info("model_checked", model=str(row.model_id), outcome=outcome, seconds=seconds, size=model.size)


class _Beat:
    """Called while bytes are read: says now and then that the worker lives. Raises Stopped."""

    def __init__(self, row: Finalization, leaving: Callable[[], bool]) -> None:
        self._row, self._leaving, self._next = row, leaving, time.monotonic() + BEAT_SECONDS

    def __call__(self) -> None:
        if self._leaving():
            raise Stopped
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + BEAT_SECONDS
            if not _held(self._row).update(beat_at=Now()):
                raise Stopped
            release_database()


def _give_back(row: Finalization) -> None:
    """Another worker goes on at once; nothing where another has it already."""
    with transaction.atomic():
        if _held(row).update(**_QUEUED, attempts=F("attempts") - 1):
            wake()


def _break_off(row: Finalization, now: dt.datetime) -> str:
    """It ended as nobody expected: again in a while, or failed. What became of it, for the log."""
    if row.attempts >= ATTEMPTS:
        with translation.override(row.language or None):
            said = _("The upload could not be checked: it broke off %d times. Finalize it again, or send it anew.")
            return _fail(row, DomainError("INTERNAL_ERROR", said % row.attempts))
    later = now + BACKOFF * (1 << max(0, row.attempts - 1))  # none is counted for a worker of the release before
    return "broke off" if _held(row).update(**_QUEUED, queued_at=later) else "lost"


def _fail(row: Finalization, error: DomainError) -> str:
    """It ended otherwise than ready: the model is pending again. What became of it, for the log."""
    told = {
        "code": error.code, "message": error.message, "details": error.details, "retry_after": error.retry_after,
    }  # fmt: skip
    with transaction.atomic():
        model = AIModel.objects.select_for_update(no_key=True).filter(id=row.model_id).first()
        if not _held(row).update(status=FinalizationStatus.FAILED, error=told, told=False, updated_at=timezone.now()):
            return "lost"
        if model is not None and model.status == ModelStatus.CHECKING:
            model.status = ModelStatus.PENDING
            model.save(update_fields=["status", "updated_at"])
    return error.code


def forget(model: AIModel) -> None:
    """Its upload begins anew or is over: no check of it has anything more to say. In the caller's transaction."""
    Finalization.objects.filter(model=model).delete()


def rescue(*, now: dt.datetime) -> int:
    """Queue again what a killed worker left behind, and wake a worker if anything waits. Returns how many waited."""
    for row in Finalization.objects.filter(status=FinalizationStatus.RUNNING, beat_at__lt=Now() - STALE):
        _break_off(row, now)
    waiting = Finalization.objects.filter(_due(now)).count()
    if waiting:
        wake()
    return waiting


_QUEUED: Final[Mapping[str, Any]] = {
    "status": FinalizationStatus.QUEUED, "run": F("run") + 1, "beat_at": None, "updated_at": Now(),
}  # fmt: skip


def _held(row: Finalization) -> QuerySet[Finalization]:
    return Finalization.objects.filter(id=row.id, run=row.run, status=FinalizationStatus.RUNNING)
