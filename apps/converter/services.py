"""Conversions from the owner's side: ordering, cancelling; and sending the order to the converter.

What the converter reports stands in `apps.converter.reports`; the contract with it is docs/converter.md.
"""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from typing import Any, Final

import orjson
import structlog
from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _
from procrastinate.contrib.django import app as jobs

from apps.accounts.models import User
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.db.connections import release_database
from apps.common.errors import DomainError, not_found
from apps.common.outbound import Policy, Refused, Unanswered, post
from apps.converter.models import OPEN, Conversion, ConversionStatus
from apps.converter.selectors import configured, conversion_of
from apps.model_registry import services as registry
from apps.model_registry.models import AIModel, ModelStatus
from apps.model_registry.selectors import model_of
from apps.webhooks.signing import HEADER, sign

logger = structlog.get_logger(__name__)

SUBMIT: Final = "converter.submit"
CONVERTER: Final = Actor.system("converter")
MAX_OPEN: Final = 20
"""Conversions that a user may have under way."""
ATTEMPTS: Final = 8
FIRST_DELAY_SECONDS: Final = 5
FACTOR: Final = 3
LONGEST_DELAY_SECONDS: Final = 600
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
AT_ONCE: Final = 3
"""Orders that a worker sends at once: a slow converter keeps as many of its places from all other jobs, no more."""
BUSY: Final = "busy"
BUSY_SECONDS: Final = 3
ANYWHERE: Final = Policy.of(private=True, networks=("0.0.0.0/0", "::/0"), plain=True)
"""The operator names the converter, nobody else."""
_places: Final = threading.BoundedSemaphore(AT_ONCE)


@transaction.atomic
def create_conversion(
    *, actor: Actor, owner_id: uuid.UUID, model_id: uuid.UUID, chip: str, now: dt.datetime
) -> Conversion:
    """Order a model for another chip.

    Raises DomainError, in this order: NOT_FOUND, INVALID_STATE (the model is not ready), NOT_IMPLEMENTED (no converter
    is configured), CONFLICT (too many under way).
    """
    model = model_of(owner_id, model_id)
    if model.status != ModelStatus.READY:
        raise DomainError("INVALID_STATE", _("The model is not ready: its upload has not been finalized."))
    if not configured():
        raise DomainError("NOT_IMPLEMENTED", _("No converter is configured here."))
    # Of two at once the second counts the first: they queue at their user's row.
    User.objects.select_for_update(no_key=True).filter(pk=owner_id).values_list("pk").first()
    if Conversion.objects.filter(owner_id=owner_id, status__in=OPEN).count() >= MAX_OPEN:
        raise DomainError("CONFLICT", _("As many conversions as are allowed are under way; wait for one to end."))
    conversion = Conversion.objects.create(owner_id=owner_id, model=model, chip=chip)
    _audit(actor, "conversion.create", conversion, now)
    jobs.configure_task(SUBMIT).defer(conversion_id=str(conversion.id), attempt=0)
    return conversion


def cancel_conversion(
    *, actor: Actor, owner_id: uuid.UUID | None, conversion_id: uuid.UUID, now: dt.datetime
) -> Conversion:
    """Cancel what is under way: the converter is told so at its next report. Again: the same answer.

    `owner_id` None: any owner's (the admin). Raises DomainError NOT_FOUND, INVALID_STATE for one that has ended.
    """
    if owner_id is not None:
        conversion_of(owner_id, conversion_id)
    if not end(actor=actor, conversion_id=conversion_id, status=ConversionStatus.CANCELLED, error="", now=now):
        found = Conversion.objects.filter(id=conversion_id).first()
        if found is None:
            raise not_found()
        if found.status != ConversionStatus.CANCELLED:
            raise DomainError("INVALID_STATE", _("This conversion has ended already."))
    return Conversion.objects.select_related("model").get(id=conversion_id)


def end(*, actor: Actor, conversion_id: uuid.UUID, status: ConversionStatus, error: str, now: dt.datetime) -> bool:
    """End a conversion without a result; what was being sent of one is dropped. False if it had ended already."""
    with transaction.atomic():
        rows = Conversion.objects.filter(id=conversion_id, status__in=OPEN)
        if not rows.update(status=status, error=error[:500], finished_at=now, updated_at=now):
            return False
        conversion = Conversion.objects.get(id=conversion_id)
        _audit(actor, f"conversion.{status.value}", conversion, now, error=error[:200])
    drop_result(conversion, now=now)
    return True


def drop_result(conversion: Conversion, *, now: dt.datetime) -> None:
    """Delete the model that was to become of it, unless that is gone already."""
    if conversion.result_id is None:
        return
    try:
        registry.delete_model(actor=CONVERTER, owner_id=conversion.owner_id, model_id=conversion.result_id, now=now)
    except DomainError as error:
        if error.code != "NOT_FOUND":
            raise


def expire(*, now: dt.datetime) -> int:
    """Fail what the converter did not end in time. Returns how many."""
    before = now - dt.timedelta(minutes=settings.VISIONA["CONVERTER_TIMEOUT_MINUTES"])
    late = Conversion.objects.filter(status__in=OPEN, created_at__lt=before).order_by("created_at")
    return sum(
        end(
            actor=CONVERTER,
            conversion_id=conversion_id,
            status=ConversionStatus.FAILED,
            error="the converter did not end it in time",
            now=now,
        )
        for conversion_id in list(late.values_list("id", flat=True)[:500])
    )


# --- the order --------------------------------------------------------------------------------------------------------
def submit(*, conversion_id: uuid.UUID, number: int, now: dt.datetime) -> str:
    """Send the order, attempt `number` (from 0), unless that was done; record it, defer the next attempt if it failed.

    Returns what became of it: `taken`, `retry`, `failed`, BUSY (no place: the attempt is made in BUSY_SECONDS) or
    `done` (there was nothing to do). The converter may get an order twice: it knows it by its id. Raises StorageError.
    """
    conversion = Conversion.objects.select_related("model", "owner").filter(id=conversion_id).first()
    if conversion is None or conversion.status != ConversionStatus.QUEUED or conversion.attempts != number:
        return "done"
    why = why_not(conversion)
    if why:
        return _failed(conversion, why, now)
    if not _places.acquire(blocking=False):
        later = jobs.configure_task(SUBMIT, schedule_in={"seconds": BUSY_SECONDS})
        later.defer(conversion_id=str(conversion.id), attempt=number)
        return BUSY
    try:
        body = orjson.dumps(order(conversion, now))
        release_database()
        error, final = _send(body, now)
    finally:
        _places.release()
    return _note(conversion, error, now, final=final, number=number)


def _note(conversion: Conversion, error: str, now: dt.datetime, *, final: bool, number: int) -> str:
    """Record what became of attempt `number`; see `submit`."""
    if not error:
        rows = Conversion.objects.filter(id=conversion.id, status=ConversionStatus.QUEUED)
        rows.update(status=ConversionStatus.RUNNING, attempts=number + 1, updated_at=now)
        return "taken"
    logger.warning("converter_did_not_take_order", conversion=str(conversion.id), error=error, number=number)
    if final or number + 1 >= ATTEMPTS:
        return _failed(conversion, error, now)
    with transaction.atomic():
        same = Conversion.objects.filter(id=conversion.id, status=ConversionStatus.QUEUED, attempts=number)
        if not same.update(attempts=number + 1, updated_at=now):
            return "done"
        wait = min(FIRST_DELAY_SECONDS * FACTOR**number, LONGEST_DELAY_SECONDS)
        later = jobs.configure_task(SUBMIT, schedule_in={"seconds": wait})
        later.defer(conversion_id=str(conversion.id), attempt=number + 1)
    return "retry"


def why_not(conversion: Conversion) -> str:
    """Why the conversion cannot go on, for its owner; empty if it can."""
    if not configured():
        return "no converter is configured any more"
    if not conversion.owner.is_active:
        return "the account is disabled"
    return "the model was deleted" if conversion.model.deleted_at is not None else ""


def order(conversion: Conversion, now: dt.datetime) -> dict[str, Any]:
    """What the converter is sent (docs/converter.md)."""
    return {
        "id": str(conversion.id),
        "chip": conversion.chip,
        "source": source_of(conversion, now),
        "callback_url": f"{base_url()}/api/conversions/{conversion.id}/callback",
    }


def source_of(conversion: Conversion, now: dt.datetime) -> dict[str, Any]:
    """The file to convert, and where to fetch it for a while."""
    model: AIModel = conversion.model
    download = registry.allow_download(
        actor=CONVERTER, user_id=conversion.owner_id, model_id=model.id, base_url=base_url(), now=now
    )
    return {
        "url": download.url,
        "expires_at": download.expires_at,
        "filename": model.filename,
        "format": model.format,
        "size": model.size,
        "sha256": model.sha256,
    }


def base_url() -> str:
    """Our API as the converter reaches it, without a slash at the end."""
    public: str = settings.VISIONA["PUBLIC_URL"]
    return public.rstrip("/")


def _send(body: bytes, now: dt.datetime) -> tuple[str, bool]:
    """Why the order was not taken (empty: it was), and whether to ask again is of no use."""
    secret: str = settings.VISIONA["CONVERTER_SECRET"][0]
    try:
        reply = post(
            settings.VISIONA["CONVERTER_URL"],
            body,
            headers={"Content-Type": "application/json", HEADER: sign([secret], body, int(now.timestamp()))},
            policy=ANYWHERE,
            connect_seconds=CONNECT_SECONDS,
            total_seconds=ANSWER_SECONDS,
        )
    except (Refused, Unanswered) as error:
        return f"the converter does not answer: {error}", False
    if 200 <= reply.status < 300:
        return "", False
    refused = 400 <= reply.status < 500 and reply.status not in (408, 425, 429)
    return f"the converter answered {reply.status}", refused


def _failed(conversion: Conversion, error: str, now: dt.datetime) -> str:
    end(actor=CONVERTER, conversion_id=conversion.id, status=ConversionStatus.FAILED, error=error, now=now)
    return "failed"


def _audit(actor: Actor, action: str, conversion: Conversion, now: dt.datetime, **detail: str) -> None:
    record(
        actor=actor,
        action=action,
        object_type="conversion",
        object_id=str(conversion.id),
        detail={"model_id": str(conversion.model_id), "chip": conversion.chip, **detail},
        now=now,
    )
