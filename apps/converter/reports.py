"""What the converter reports (docs/converter.md): that it works, that it has a result to send, that it sent it, or that
it failed. Each report may come twice, late, or for what was cancelled: it changes nothing then.

No transaction is open while bytes are checked; whoever loses a race drops what came of its own half.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _

from apps.audit.services import record
from apps.common import redis
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found
from apps.converter import services
from apps.converter.models import OPEN, Conversion, ConversionStatus
from apps.model_registry import services as registry
from apps.model_registry.models import AIModel, ModelSource, ModelStatus
from apps.model_registry.selectors import models_of
from apps.model_registry.services import Facts
from apps.storage.base import Upload
from apps.webhooks.signing import LEEWAY_SECONDS, signed_at, verify

MAX_VERSION: Final = 64
CHECKING_RETRY: Final = 5
"""Seconds after which a converter looks again whether its bytes were checked."""
_SEEN: Final = redis.PREFIX + "converter:seen:"


@dataclass(frozen=True, slots=True)
class Made:
    """The file that the converter has made and is about to send."""

    filename: str
    format: str
    size: int
    sha256: str


def authenticate(*, signature: str, body: bytes, now: dt.datetime) -> None:
    """Raises DomainError SIGNATURE_INVALID for a report that is forged, too old, or was made use of before."""
    secrets: Sequence[str] = settings.VISIONA["CONVERTER_SECRET"]
    if not verify(signature, secrets, body, int(now.timestamp())):
        raise DomainError("SIGNATURE_INVALID", _("The report's signature is forged or too old."))
    # What was signed, not how the header spells it: blanks or another `v1` in it must not make a new report of it.
    key = _SEEN + hashlib.sha256(b"%d.%s" % (signed_at(signature) or 0, body)).hexdigest()
    if not redis.client().set(key, "1", nx=True, ex=2 * LEEWAY_SECONDS + 60):
        raise DomainError("SIGNATURE_INVALID", _("This report came before; sign it anew to repeat it."))


def running(*, conversion_id: uuid.UUID, bytes_done: int, now: dt.datetime) -> Conversion:
    """It works on it, and has read so many bytes. Raises DomainError NOT_FOUND, INVALID_STATE (it has ended)."""
    conversion = _open(conversion_id, now)
    done = max(conversion.bytes_done, min(bytes_done, conversion.model.size))
    rows = Conversion.objects.filter(id=conversion_id, status__in=OPEN)
    if not rows.update(status=ConversionStatus.RUNNING, bytes_done=done, updated_at=now):
        raise _ended(conversion_id)
    conversion.status, conversion.bytes_done = ConversionStatus.RUNNING, done
    return conversion


def converted(*, conversion_id: uuid.UUID, made: Made, now: dt.datetime) -> tuple[Conversion, Upload]:
    """It has a result: a pending model, and where to send its bytes. Reported again, the upload begins anew.

    Raises DomainError NOT_FOUND, INVALID_STATE (it has ended), PAYLOAD_TOO_LARGE, and StorageError.
    """
    conversion = _open(conversion_id, now)
    model, upload = registry.begin_upload(
        actor=services.CONVERTER,
        owner_id=conversion.owner_id,
        facts=Facts(
            name=conversion.model.name,
            version=_version(conversion),
            filename=made.filename,
            description=conversion.model.description,
            format=made.format,
            chips=(conversion.chip,),
        ),
        size=made.size,
        sha256=made.sha256,
        base_url=services.base_url(),
        now=now,
        source=ModelSource.CONVERTED,
    )
    rows = Conversion.objects.filter(id=conversion_id, status__in=OPEN)
    conversion.result = model
    if not rows.update(status=ConversionStatus.RUNNING, result=model, updated_at=now):
        services.drop_result(conversion, now=now)
        raise _ended(conversion_id)
    conversion.status = ConversionStatus.RUNNING
    return conversion, upload


def done(
    *, actor: Actor, conversion_id: uuid.UUID, parts: Sequence[tuple[int, str]] | None, now: dt.datetime
) -> Conversion:
    """The bytes are sent: they are checked, and the new model is ready. Again: the same answer.

    Raises DomainError NOT_FOUND; INVALID_STATE when it has ended otherwise, when bytes are missing or are not those
    that were reported (send them again), and when its owner deleted the new model; StorageError.
    """
    conversion = _of(conversion_id)
    if conversion.status == ConversionStatus.DONE:
        return conversion
    conversion = _open(conversion_id, now)
    if conversion.result_id is None:
        raise DomainError("INVALID_STATE", _("Report the result with its size first, then send its bytes."))
    try:
        made = registry.finalize(
            actor=actor, owner_id=conversion.owner_id, model_id=conversion.result_id, parts=parts, now=now
        )
    except DomainError as error:
        if error.code != "NOT_FOUND":
            raise
        _fail(conversion, "the new model was deleted", now)
        raise _ended(conversion_id) from error
    if made.status != ModelStatus.READY:  # a worker is still reading it back
        raise DomainError("OVERLOADED", _("The bytes are being checked: report it again."), retry_after=CHECKING_RETRY)
    with transaction.atomic():
        rows = Conversion.objects.filter(id=conversion_id, status__in=OPEN)
        won = rows.update(
            status=ConversionStatus.DONE, bytes_done=conversion.model.size, finished_at=now, updated_at=now
        )
        if won:
            record(
                actor=actor,
                action="conversion.done",
                object_type="conversion",
                object_id=str(conversion_id),
                detail={"model_id": str(conversion.model_id), "result_model_id": str(conversion.result_id)},
                now=now,
            )
    again = _of(conversion_id)
    if not won and again.status != ConversionStatus.DONE:  # cancelled, or too late, while the bytes were checked
        services.drop_result(conversion, now=now)
        raise _ended(conversion_id)
    return again


def failed(*, actor: Actor, conversion_id: uuid.UUID, error: str, now: dt.datetime) -> Conversion:
    """It could not be converted; `error` is for its owner. Again: the same answer.

    Raises DomainError NOT_FOUND, INVALID_STATE when it has ended otherwise.
    """
    ended = services.end(actor=actor, conversion_id=conversion_id, status=ConversionStatus.FAILED, error=error, now=now)
    conversion = _of(conversion_id)
    if not ended and conversion.status != ConversionStatus.FAILED:
        raise _ended(conversion_id)
    return conversion


def _of(conversion_id: uuid.UUID) -> Conversion:
    found = Conversion.objects.select_related("model", "owner").filter(id=conversion_id).first()
    if found is None:
        raise not_found()
    return found


def _open(conversion_id: uuid.UUID, now: dt.datetime) -> Conversion:
    """The conversion, if it is under way and may go on; one that may not ends here."""
    conversion = _of(conversion_id)
    if conversion.status not in OPEN:
        raise _ended(conversion_id)
    why = services.why_not(conversion)
    if why:
        _fail(conversion, why, now)
        raise _ended(conversion_id)
    return conversion


def _fail(conversion: Conversion, why: str, now: dt.datetime) -> None:
    services.end(
        actor=services.CONVERTER,
        conversion_id=conversion.id,
        status=ConversionStatus.FAILED,
        error=why,
        now=now,
    )


def _ended(conversion_id: uuid.UUID) -> DomainError:
    """`details.status` tells this refusal from that of bytes that are missing, after which one may try again."""
    status = Conversion.objects.filter(id=conversion_id).values_list("status", flat=True).first()
    return DomainError("INVALID_STATE", _("This conversion has ended; drop it."), details={"status": [str(status)]})


def _version(conversion: Conversion) -> str:
    """A version that is free, or that of an upload of this conversion that begins anew: `1.0-KL720`, `1.0-KL720-2` …"""
    mine = conversion.result
    if isinstance(mine, AIModel) and mine.deleted_at is None:
        return mine.version
    stem = f"{conversion.model.version}-{conversion.chip}"
    taken = set(models_of(conversion.owner_id).filter(name=conversion.model.name).values_list("version", flat=True))
    version, number = stem[:MAX_VERSION], 1
    while version in taken:
        number += 1
        version = f"{stem[: MAX_VERSION - len(str(number)) - 1]}-{number}"
    return version
