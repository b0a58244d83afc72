"""What changes a model: uploads in two phases, models made of bytes at hand, renaming, deleting.

Bytes are moved outside of transactions, and always before the row that speaks of them: whatever breaks off in between
leaves a pending row or bytes without a row, and `apps.model_registry.upkeep` finds both.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Final, TypeVar

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from procrastinate.contrib.django import app as jobs

from apps.accounts import quotas
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.db.connections import release_database
from apps.common.errors import DomainError, not_found
from apps.model_registry import finalization
from apps.model_registry.finalization_models import Finalization
from apps.model_registry.models import AIModel, ModelSource, ModelStatus
from apps.model_registry.selectors import model_of, models_of
from apps.storage import services as storage
from apps.storage.base import Mismatch, Promise, StorageError, Stored, TooLarge, Upload

logger = structlog.get_logger(__name__)

UNIQUE: Final = ("models_owner_name_version_unique", "models_builtin_unique")
ATTEMPTS: Final = 3
DISCARD: Final = "models.discard"
"""The job that removes bytes on a store which may keep its caller waiting."""
WITHDRAW: Final = "models.withdraw"
"""The job that takes a deleted model's bytes away from the URLs that are out, on such a store."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of a model, whatever becomes of its bytes; each text within the length of its column."""

    name: str
    version: str
    filename: str
    description: str = ""
    format: str = ""
    chips: Sequence[str] = ()
    faa_object_key: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """Where to fetch a model's bytes, and until when that may begin."""

    url: str
    expires_at: dt.datetime


def max_size() -> int:
    """The largest model file, in bytes."""
    megabytes: int = settings.VISIONA["MODEL_MAX_SIZE_MB"]
    return megabytes << 20


# --- the two phases of an upload --------------------------------------------------------------------------------------
def begin_upload(
    *,
    actor: Actor,
    owner_id: uuid.UUID,
    facts: Facts,
    size: int,
    sha256: str,
    base_url: str,
    now: dt.datetime,
    source: ModelSource = ModelSource.UPLOAD,
) -> tuple[AIModel, Upload]:
    """A pending model, and how to send its bytes.

    One that is pending or failed already under this name and version begins anew: it keeps its id and `created_at`.

    Args:
        size: of the file, in bytes. sha256: lower-case hex, or empty.
        base_url: our API as the uploader reaches it, without a slash at the end.
        source: `converted` for what a converter sends.

    Raises DomainError: PAYLOAD_TOO_LARGE, QUOTA_EXCEEDED, CONFLICT for one that is ready, and StorageError.
    """
    if size > max_size():
        raise DomainError(
            "PAYLOAD_TOO_LARGE", details={"size": [_("At most %d bytes (VISIONA_MODEL_MAX_SIZE_MB).") % max_size()]}
        )
    if models_of(owner_id).filter(name=facts.name, version=facts.version, status=ModelStatus.READY).exists():
        raise _taken()
    release_database()
    upload_key, object_key = storage.new_keys()
    promise = Promise(upload_key, object_key, size, sha256, storage.upload_until(now, size), str(owner_id))
    upload = storage.store().begin(promise, base_url=base_url)
    try:
        model, before = _retry_unique(lambda: _write_pending(actor, owner_id, facts, source, promise, upload, now))
    except DomainError:  # after any other error nobody knows whether the row is there: what is left is the reaper's
        _discard(upload.key, upload.upload_id)
        raise
    if before is not None:
        _discard_all(before)
    return model, upload


def _write_pending(
    actor: Actor,
    owner_id: uuid.UUID,
    facts: Facts,
    source: ModelSource,
    promise: Promise,
    upload: Upload,
    now: dt.datetime,
) -> tuple[AIModel, AIModel | None]:
    """The row, and what it was before if it was there."""
    rows = models_of(owner_id).filter(name=facts.name, version=facts.version)
    there = rows.values_list("size", flat=True).first()
    quotas.check(owner_id, models=there is None, model_bytes=promise.size - (there or 0))
    model = rows.select_for_update(no_key=True).first()
    before = copy(model)
    if model is None:
        model = AIModel(owner_id=owner_id)
    elif model.status == ModelStatus.READY:
        raise _taken()
    _set(model, facts)
    model.source = source
    model.status, model.size, model.sha256 = ModelStatus.PENDING, promise.size, promise.sha256
    model.object_key, model.upload_key, model.upload_id = promise.object_key, upload.key, upload.upload_id
    model.upload_begun_at = now
    model.save()
    if before is not None:
        finalization.forget(model)
    _audit(actor, "model.init", model, {"size": model.size}, now)
    return model, before


def finalize(
    *,
    actor: Actor,
    owner_id: uuid.UUID,
    model_id: uuid.UUID,
    parts: Sequence[tuple[int, str]] | None,
    now: dt.datetime,
) -> AIModel:
    """Check the uploaded bytes; the model is ready. Again: the same answer. Of several at once one does it.

    Where bytes may have to be read back a worker does it; what it has not ended after 10 s (at once, where many wait)
    is returned with the status `checking`, and a later call tells the end.

    Args:
        parts: (number, etag) of each part of a multipart upload; None for any other.

    Raises DomainError: NOT_FOUND; INVALID_STATE when bytes are missing or not those that were promised, which leaves
    the model pending, to be uploaded again; VALIDATION_ERROR for parts; StorageError.
    """
    seen = _own(owner_id, model_id)
    if seen.status == ModelStatus.READY:
        return seen
    if not storage.store().settles_at_once:
        row = finalization.request(actor=actor, owner_id=owner_id, model_id=model_id, parts=parts, now=now)
        if row is not None:
            finalization.wait(row)
        return _own(owner_id, model_id)
    if seen.status not in (ModelStatus.PENDING, ModelStatus.CHECKING) or not seen.upload_key:
        raise DomainError("INVALID_STATE", _("Nothing is being uploaded: begin with POST /api/models/init."))
    promise = Promise(seen.upload_key, seen.object_key, seen.size, seen.sha256, now)
    release_database()
    try:
        stored = storage.store().settle(promise, upload_id=seen.upload_id, parts=parts)
    except Mismatch as error:
        again = _own(owner_id, model_id)
        if again.status == ModelStatus.READY:  # another one's finalize was quicker
            return again
        raise DomainError("INVALID_STATE", str(error)) from error
    return _write_ready(actor, owner_id, seen, stored, now)


def check_uploads(*, leaving: Callable[[], bool]) -> int:
    """A worker's turn: check what waits for it; how many. `leaving`: whether the worker is to end."""

    def write(row: Finalization, seen: AIModel, stored: Stored) -> None:
        _write_ready(Actor(**row.actor), _owner_of(seen), seen, stored, timezone.now())

    return finalization.work(leaving=leaving, write=write)


def _owner_of(model: AIModel) -> uuid.UUID:
    if model.owner_id is None:  # a built-in one is never uploaded
        raise not_found()
    return model.owner_id


@transaction.atomic
def _write_ready(actor: Actor, owner_id: uuid.UUID, seen: AIModel, stored: Stored, now: dt.datetime) -> AIModel:
    model = models_of(owner_id).select_for_update(no_key=True).filter(id=seen.id).first()
    if model is None:  # deleted meanwhile: its row names the bytes, and goes with them
        raise not_found()
    if model.status == ModelStatus.READY:
        return model
    if model.object_key != seen.object_key:
        raise DomainError("INVALID_STATE", _("Another upload of this model has begun meanwhile."))
    model.status, model.size, model.sha256 = ModelStatus.READY, stored.size, stored.sha256
    model.upload_key = model.upload_id = ""
    model.upload_begun_at = None
    model.save()
    finalization.forget(model)
    _audit(actor, "model.finalize", model, {"size": model.size, "sha256": model.sha256}, now)
    return model


# --- models of bytes at hand ------------------------------------------------------------------------------------------
def create_ready(
    *,
    actor: Actor,
    owner_id: uuid.UUID | None,
    facts: Facts,
    stream: BinaryIO,
    source: ModelSource,
    now: dt.datetime,
) -> AIModel:
    """A ready model of what `stream` has, read in pieces to its end. To be called outside of a transaction.

    Args:
        owner_id: None for a built-in one, which then has that source.

    Raises DomainError: PAYLOAD_TOO_LARGE (over `max_size()`); VALIDATION_ERROR for an empty stream; CONFLICT if there
    is one of this name and version; StorageError.
    """
    _upload_key, object_key = storage.new_keys()
    release_database()
    try:
        stored = storage.store().put(object_key, stream, limit=max_size())
    except TooLarge:
        raise DomainError("PAYLOAD_TOO_LARGE") from None
    try:
        if not stored.size:
            raise DomainError("VALIDATION_ERROR", details={"file": [_("It is empty.")]})
        return _write_created(actor, owner_id, facts, source, stored, object_key, now)
    except (DomainError, IntegrityError) as error:
        # After any other error the commit may have happened, and a ready row must keep its bytes: if it has not, the
        # reaper finds them.
        _discard(object_key)
        if isinstance(error, IntegrityError) and any(name in str(error) for name in UNIQUE):
            raise _taken() from error
        raise


@transaction.atomic
def _write_created(
    actor: Actor,
    owner_id: uuid.UUID | None,
    facts: Facts,
    source: ModelSource,
    stored: Stored,
    object_key: str,
    now: dt.datetime,
) -> AIModel:
    if owner_id is not None:
        quotas.check(owner_id, models=1, model_bytes=stored.size)
    model = AIModel(owner_id=owner_id, source=source, status=ModelStatus.READY, object_key=object_key)
    _set(model, facts)
    model.size, model.sha256 = stored.size, stored.sha256
    model.save(force_insert=True)
    _audit(actor, "model.create", model, {"source": source.value, "size": model.size}, now)
    return model


# --- what is ready ----------------------------------------------------------------------------------------------------
def allow_download(
    *, actor: Actor, user_id: uuid.UUID, model_id: uuid.UUID, base_url: str, now: dt.datetime
) -> Download:
    """Where the bytes are to be fetched. Raises DomainError NOT_FOUND; INVALID_STATE for one that is not ready."""
    model = model_of(user_id, model_id)
    if model.status != ModelStatus.READY:
        raise DomainError("INVALID_STATE", _("The model is not ready: its upload has not been finalized."))
    expires_at = storage.download_until(now)
    url = storage.store().download_url(
        model.object_key,
        filename=model.filename,
        stored=Stored(model.size, model.sha256),
        expires_at=expires_at,
        base_url=base_url,
        owner=str(user_id),
    )
    _audit(actor, "model.download", model, {}, now)
    return Download(url, expires_at)


def change_model(
    *, actor: Actor, owner_id: uuid.UUID, model_id: uuid.UUID, changes: Mapping[str, Any], now: dt.datetime
) -> AIModel:
    """Set fields of `Facts`, as far as given. Raises DomainError NOT_FOUND, FORBIDDEN (a built-in one), CONFLICT."""
    try:
        with transaction.atomic():
            model = _own(owner_id, model_id, lock=True)
            for name, value in changes.items():
                setattr(model, name, value)
            if changes:
                model.save(update_fields=[*changes, "updated_at"])
                _audit(actor, "model.change", model, {"fields": sorted(changes)}, now)
    except IntegrityError as error:
        if not any(name in str(error) for name in UNIQUE):
            raise
        raise _taken() from error
    return model


def delete_model(*, actor: Actor, owner_id: uuid.UUID, model_id: uuid.UUID, now: dt.datetime) -> AIModel:
    """Soft-delete: its name is free at once, its bytes are purged later (`upkeep.purge`); an upload ends.

    A URL of its bytes that is out leads nowhere from now on: they are put where none leads, by a worker where the
    store is another machine. Of two at once one deletes, the other raises DomainError NOT_FOUND. A built-in one:
    FORBIDDEN.
    """
    at_once = storage.store().settles_at_once
    with transaction.atomic():
        model = _own(owner_id, model_id, lock=True)
        model.deleted_at = now
        model.save(update_fields=["deleted_at", "updated_at"])
        _audit(actor, "model.delete", model, {"name": model.name, "version": model.version}, now)
        if model.status == ModelStatus.READY and not at_once:
            jobs.configure_task(WITHDRAW).defer(key=model.object_key)
    if model.status == ModelStatus.READY and at_once:
        try:
            withdraw(key=model.object_key)
        except StorageError as error:
            logger.warning("bytes_left_to_the_reaper", key=model.object_key, error=type(error.__cause__).__name__)
    if model.upload_key:
        _discard(model.upload_key, model.upload_id)
    return model


def withdraw(*, key: str) -> None:
    """Put a deleted model's bytes where no URL leads. Raises StorageError."""
    if AIModel.objects.filter(object_key=key, deleted_at=None).exists():  # a database was restored meanwhile
        return
    release_database()
    storage.store().withdraw(key)


# --- shared -----------------------------------------------------------------------------------------------------------
def _own(owner_id: uuid.UUID, model_id: uuid.UUID, *, lock: bool = False) -> AIModel:
    """The user's own live model. Raises DomainError NOT_FOUND, and FORBIDDEN for a built-in one, which is nobody's."""
    rows = models_of(owner_id).filter(id=model_id)
    model = (rows.select_for_update(no_key=True) if lock else rows).first()
    if model is None:
        model_of(owner_id, model_id)
        raise DomainError("FORBIDDEN", _("Built-in models cannot be changed."))
    return model


def _set(model: AIModel, facts: Facts) -> None:
    for name, value in asdict(facts).items():
        setattr(model, name, list(value) if name == "chips" else value)


def _taken() -> DomainError:
    text = _("You have a model of this name and version already: choose another version, or delete it.")
    return DomainError("CONFLICT", text, details={"version": [text]})


def _retry_unique(act: Callable[[], Result]) -> Result:
    """Run `act` in a transaction, anew when another's insert of the same name won. Raises DomainError CONFLICT."""
    for _attempt in range(ATTEMPTS):
        try:
            with transaction.atomic():
                return act()
        except IntegrityError as error:
            if not any(name in str(error) for name in UNIQUE):
                raise
    raise _taken()


def _discard(key: str, upload_id: str = "") -> None:
    """Remove bytes that nothing speaks of any more; what fails now is done by the reaper.

    A caller who needs no bytes never waits for a store over the network: a worker removes them there.
    """
    if not storage.store().settles_at_once:
        jobs.configure_task(DISCARD).defer(key=key, upload_id=upload_id)
        return
    try:
        storage.store().discard(key, upload_id=upload_id)
    except StorageError as error:
        logger.warning("bytes_left_to_the_reaper", key=key, error=type(error.__cause__).__name__)


def _discard_all(model: AIModel) -> None:
    if model.upload_key:
        _discard(model.upload_key, model.upload_id)
    _discard(model.object_key)


def _audit(actor: Actor, action: str, model: AIModel, detail: Mapping[str, Any], now: dt.datetime) -> None:
    record(actor=actor, action=action, object_type="model", object_id=str(model.id), detail=detail, now=now)
