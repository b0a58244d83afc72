"""What the passing of time does to models: uploads given up, deleted models purged, bytes that nothing speaks of.

Bytes of a deleted model that lie in a live one's place are withdrawn, and the reverse (a restored database).

Safe on every host and at any time, several at once too: rows are taken under a lock that skips those which another has,
and to remove what is gone is no error. A row goes before its bytes: whatever breaks off leaves bytes without a row,
which the next run finds.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Final

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from apps.audit.services import record
from apps.common.actor import Actor
from apps.model_registry.models import AIModel, ModelStatus
from apps.storage import services as storage
from apps.storage.base import Leftover, StorageError

logger = structlog.get_logger(__name__)

UPLOAD_KEPT: Final = dt.timedelta(hours=24)
"""product.md, "Over time": abandoned uploads go after this long, and so do bytes that nothing speaks of."""
BATCH: Final = 200
"""Rows a transaction, and keys a query."""
UPLOADING: Final = (ModelStatus.PENDING, ModelStatus.CHECKING)


@dataclass(slots=True)
class Reaped:
    """What a run removed: pending models, deleted ones, bytes without a row; and what it could not remove."""

    uploads: int = 0
    models: int = 0
    orphans: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name}: {count}" for name, count in asdict(self).items())


def reap(*, now: dt.datetime, dry_run: bool = False) -> Reaped:
    """Everything below, in its order. `dry_run`: count alone. Raises StorageError where the store cannot be listed."""
    found = Reaped()
    abandoned = Q(status__in=UPLOADING, upload_begun_at__lte=now - UPLOAD_KEPT, deleted_at=None)
    kept = dt.timedelta(days=settings.VISIONA["KEEP_DELETED_DAYS"])
    deleted = Q(deleted_at__lte=now - kept)
    found.uploads = _remove(abandoned, "model.upload_expired", found, now, dry_run)
    found.models = _remove(deleted, "model.purge", found, now, dry_run)
    _remove_orphans(found, now, dry_run)
    logger.info("models_reaped", dry_run=dry_run, **asdict(found))
    return found


def purge_owner(*, owner_id: uuid.UUID, now: dt.datetime) -> Reaped:
    """All models of a user who leaves, rows and bytes, whatever their state. What fails is left to `reap`."""
    found = Reaped()
    found.models = _remove(Q(owner_id=owner_id), "model.purge", found, now, dry_run=False)
    return found


def _remove(which: Q, action: str, found: Reaped, now: dt.datetime, dry_run: bool) -> int:
    """Rows, then their bytes; how many rows."""
    rows = AIModel.objects.filter(which)
    if dry_run:
        return rows.count()
    count = 0
    while gone := _remove_rows(rows, action, now):
        count += len(gone)
        for model in gone:
            if model.upload_key:
                _discard(Leftover(model.upload_key, now, model.upload_id), found)
            _discard(Leftover(model.object_key, now), found)
    return count


@transaction.atomic
def _remove_rows(rows: QuerySet[AIModel], action: str, now: dt.datetime) -> list[AIModel]:
    """Some of the rows; empty when none is left, or another has them all."""
    gone = list(rows.order_by("id").select_for_update(skip_locked=True, of=("self",))[:BATCH])
    AIModel.objects.filter(id__in=[model.id for model in gone]).delete()
    for model in gone:
        record(
            actor=Actor.system("reaper"),
            action=action,
            object_type="model",
            object_id=str(model.id),
            detail={"name": model.name, "version": model.version},
            now=now,
        )
    return gone


def _remove_orphans(found: Reaped, now: dt.datetime, dry_run: bool) -> None:
    """Bytes a day old or older that no row speaks of: of a process that was killed between one and the other."""
    for batch in _batches(storage.store().leftovers()):
        keys = {each.key for each in batch}
        named = AIModel.objects.filter(Q(object_key__in=keys) | Q(upload_key__in=keys))
        spoken_of = {(key, "") for row in named.values_list("object_key", "upload_key") for key in row}
        spoken_of |= set(named.exclude(upload_id="").values_list("upload_key", "upload_id"))
        deleted = dict(named.filter(status=ModelStatus.READY).values_list("object_key", "deleted_at"))
        for each in batch:
            if (each.key, each.upload_id) in spoken_of:
                if not dry_run and each.key in deleted and each.withdrawn == (deleted[each.key] is None):
                    _put_right(each, found)
            elif each.modified_at <= now - UPLOAD_KEPT:
                found.orphans += 1
                if not dry_run:
                    _discard(each, found)


def _put_right(what: Leftover, found: Reaped) -> None:
    store = storage.store()
    try:
        (store.reinstate if what.withdrawn else store.withdraw)(what.key)
    except StorageError:
        found.failed += 1


def _discard(what: Leftover, found: Reaped) -> None:
    try:
        storage.store().discard(what.key, upload_id=what.upload_id)
    except StorageError:
        found.failed += 1  # the next run finds it


def _batches(items: Iterable[Leftover]) -> Iterator[list[Leftover]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch
