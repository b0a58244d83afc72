"""The object store that the settings name, and what the apps above do with it.

Reads and writes of bytes may take long: whoever calls holds no transaction meanwhile.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.utils.module_loading import import_string

from apps.common.ids import uuid7
from apps.storage.base import OBJECTS, UPLOADS, Mismatch, ObjectStore, StorageError
from apps.storage.local import LocalStore

S3_STORE: Final = "apps.storage.s3.S3Store"
"""By name: boto3 costs half a second and 30 MB, which a process without S3 is spared."""
SLOWEST: Final = 256 << 10
"""Bytes a second that a large upload is given time for."""
LONGEST: Final = 18 * 3600
"""Seconds; well before an upload is given up after a day."""


_S3_SETTINGS: Final = (
    "S3_BUCKET", "S3_ENDPOINT_URL", "S3_PUBLIC_ENDPOINT_URL", "S3_REGION", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY",
    "S3_PREFIX", "S3_ADDRESSING", "S3_CA_FILE",
)  # fmt: skip


def store() -> ObjectStore:
    """The store of this installation."""
    values = settings.VISIONA
    if values["S3_BUCKET"]:
        return _s3(**{name.removeprefix("S3_").lower(): values[name] for name in _S3_SETTINGS})
    return local_store()


def local_store() -> LocalStore:
    """The local store, where `/storage/*` finds its files."""
    values = settings.VISIONA
    return LocalStore(Path(settings.BASE_DIR, values["STORAGE_DIR"]), values["STORAGE_SIGNING_SECRET"])


@lru_cache(maxsize=8)
def _s3(**options: Any) -> ObjectStore:
    made: ObjectStore = import_string(S3_STORE)(**options)
    return made


def new_keys() -> tuple[str, str]:
    """A key for an upload and one for the object that becomes of it; neither was used before."""
    name = uuid7().hex
    return f"{UPLOADS}{name}", f"{OBJECTS}{name[-2:]}/{name}"


@contextmanager
def open_range(*, key: str, start: int, length: int) -> Iterator[Iterator[bytes]]:
    """`length` bytes of an object from `start` on, in pieces of at most 1 MiB: constant memory.

    Raises StorageError (a DomainError, 503), at any piece too: also where the object is not there, since every key
    that a ready model names has its object.
    """
    try:
        with store().open_range(key, start, length) as pieces:
            yield pieces
    except Mismatch as error:
        raise StorageError from error


def upload_until(now: dt.datetime, size: int) -> dt.datetime:
    """Until when an upload of `size` bytes that is promised at `now` may begin, the last part of it too."""
    seconds = max(settings.VISIONA["STORAGE_UPLOAD_SECONDS"], min(size // SLOWEST, LONGEST))
    return now + dt.timedelta(seconds=seconds)


def download_until(now: dt.datetime) -> dt.datetime:
    """Until when a download that is allowed at `now` may begin."""
    return now + dt.timedelta(seconds=settings.VISIONA["STORAGE_DOWNLOAD_SECONDS"])
