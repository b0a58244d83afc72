"""The local store: files below `VISIONA_STORAGE_DIR`, for one API host, or several that share the folder.

    uploads/<upload>/            made by `begin`; while it is there, bytes may be sent
    uploads/<upload>/part-…      bytes that are just arriving
    uploads/<upload>/<sha256>    bytes that have arrived whole, on disk, under their own checksum
    models/<aa>/<id>             checked bytes, moved there by one rename
    deleted/<aa>/<id>            those of a deleted model

So a name tells at any moment what is behind it, whenever the power goes: a part is never taken for a whole.
"""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import structlog

from apps.storage.base import (
    CHUNK,
    OBJECTS,
    UPLOADS,
    WITHDRAWN,
    Leftover,
    Mismatch,
    Progress,
    Promise,
    StorageError,
    Stored,
    TooLarge,
    Upload,
    check,
    check_key,
    no_progress,
    nothing_came,
    withdrawn,
)
from apps.storage.signing import Grant, Method, sign

logger = structlog.get_logger(__name__)

_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_PART: Final = "part-"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Gone(Exception):
    """The upload is over: settled, given up, or never begun."""


class Source(Protocol):
    """Where bytes come from. What it raises must be no OSError, which would be taken for the disk's."""

    def read(self, size: int, /) -> bytes: ...


class LocalStore:
    """An ObjectStore on a file system. `secrets` sign its URLs, the first one; all verify."""

    settles_at_once = True

    def __init__(self, root: Path, signing: Sequence[str]) -> None:
        self._root = root
        self._signing = tuple(signing)

    def __repr__(self) -> str:
        return f"<LocalStore {self._root}>"

    # --- uploads ------------------------------------------------------------------------------------------------------
    def begin(self, promise: Promise, *, base_url: str) -> Upload:
        """Make the folder that lets bytes in."""
        with _mapped():
            self._path(promise.upload_key).mkdir(mode=0o700, parents=True, exist_ok=True)
        url = self._url("PUT", promise.upload_key, promise.size, promise.expires_at, base_url, promise.owner)
        return Upload(
            promise.upload_key, promise.expires_at, url=url, headers={"Content-Type": "application/octet-stream"}
        )

    def receive(self, key: str, source: Source, *, limit: int) -> Stored:
        """Take an upload's bytes; those that an earlier try brought are replaced when these are whole.

        Nothing is left of a try that fails. Raises Gone, TooLarge, StorageError, and what `source` raises.
        """
        slot = self._path(key)
        with _mapped():
            if not slot.is_dir():
                raise Gone
            with self._arriving(slot, source, limit) as (part, stored):
                try:
                    with _locked(slot):
                        part.rename(slot / stored.sha256)
                        for other in _arrived(slot):
                            if other.name != stored.sha256:
                                other.unlink()
                    _sync_folder(slot)
                except FileNotFoundError:  # settled or given up meanwhile
                    raise Gone from None
        return stored

    def arrived(self, key: str) -> tuple[str, int] | None:
        """The SHA-256 of what an upload has brought whole, and when, in seconds since 1970; None: nothing yet."""
        with _mapped():
            for path in _arrived(self._path(key)):
                at = _modified(path)
                if at is not None:
                    return path.name, int(at.timestamp())
        return None

    def settle(
        self,
        promise: Promise,
        *,
        upload_id: str = "",
        parts: Sequence[tuple[int, str]] | None = None,
        progress: Progress = no_progress,
    ) -> Stored:
        """Move what has arrived to its place: one rename. `upload_id` and `parts` are S3's alone."""
        slot, place = self._path(promise.upload_key), self._path(promise.object_key)
        with _mapped():
            stored = self._move(slot, place, promise)
            if stored is None:  # moved by an earlier call that did not live to tell, or never there
                stored = _measure(place)
                check(promise, stored)
            shutil.rmtree(slot, ignore_errors=True)
        return stored

    def _move(self, slot: Path, place: Path, promise: Promise) -> Stored | None:
        """What has arrived, checked and moved; None where there is nothing. Raises Mismatch."""
        try:
            with _locked(slot):
                found = next(iter(_arrived(slot)), None)
                if found is None:
                    return None
                stored = Stored(found.stat().st_size, found.name)
                check(promise, stored)
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                found.rename(place)
                _sync_folder(place.parent)
                return stored
        except FileNotFoundError:
            return None

    # --- objects ------------------------------------------------------------------------------------------------------
    def put(self, key: str, source: BinaryIO, *, limit: int) -> Stored:
        """Keep a stream's bytes. On the way they lie in a folder of uploads, where the reaper would find them."""
        place, slot = self._path(key), self._root / UPLOADS / secrets.token_hex(16)
        with _mapped():
            slot.mkdir(mode=0o700, parents=True)
            try:
                with self._arriving(slot, source, limit) as (part, stored):
                    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    part.rename(place)
                    _sync_folder(place.parent)
            finally:
                shutil.rmtree(slot, ignore_errors=True)
        return stored

    @contextmanager
    def open_range(self, key: str, start: int, length: int) -> Iterator[Iterator[bytes]]:
        """Pieces of a file."""
        with self._open_anywhere(key) as file:  # not within _mapped: what the caller's block raises is the caller's
            if start + length > os.fstat(file.fileno()).st_size:
                raise Mismatch("the range lies outside of the object")
            file.seek(start)
            yield _pieces(file, length)

    def _open_anywhere(self, key: str) -> FileIO:
        try:
            return self.open(key)
        except Mismatch:
            return self.open(withdrawn(key))

    def withdraw(self, key: str) -> None:
        """One rename; who reads it already reads on."""
        self._shift(self._path(key), self._path(withdrawn(key)))

    def reinstate(self, key: str) -> None:
        """One rename back."""
        self._shift(self._path(withdrawn(key)), self._path(key))

    @staticmethod
    def _shift(source: Path, target: Path) -> None:
        with _mapped():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                source.rename(target)
            except FileNotFoundError:
                return
            _sync_folder(target.parent)

    def open(self, key: str) -> FileIO:
        """The file of an object that is in its place. Raises Mismatch where there is none."""
        try:
            with _mapped():
                return self._path(key).open("rb", buffering=0)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise Mismatch("there is no such object") from None
            raise

    def discard(self, key: str, *, upload_id: str = "") -> None:
        """Remove a file, or the folder of an upload."""
        path = self._path(key)
        with _mapped():
            if key.startswith(UPLOADS):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
                self._path(withdrawn(key)).unlink(missing_ok=True)

    def problem(self) -> str:
        """None that is known before a file is touched."""
        return ""

    def leftovers(self) -> Iterator[Leftover]:
        """Uploads by the newest time of what is in them, and objects by theirs."""
        with _mapped():
            for slot in _listed(self._root / UPLOADS):
                times = [at for at in map(_modified, [slot, *_listed(slot)]) if at is not None]
                if times:
                    yield Leftover(f"{UPLOADS}{slot.name}", max(times))
            for folder in (OBJECTS, WITHDRAWN):
                for shelf in _listed(self._root / folder):
                    for path in _listed(shelf):
                        at = _modified(path)
                        if at is not None:
                            yield Leftover(f"{OBJECTS}{shelf.name}/{path.name}", at, withdrawn=folder == WITHDRAWN)

    def download_url(
        self, key: str, *, filename: str, stored: Stored, expires_at: dt.datetime, base_url: str, owner: str = ""
    ) -> str:
        """`/storage/{signed}` on our own API."""
        return self._url("GET", key, stored.size, expires_at, base_url, owner, filename, stored.sha256)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _url(
        self,
        method: Method,
        key: str,
        size: int,
        expires_at: dt.datetime,
        base_url: str,
        owner: str,
        filename: str = "",
        sha256: str = "",
    ) -> str:
        grant = Grant(method, key, size, int(expires_at.timestamp()), filename, sha256, owner)
        return f"{base_url}/storage/{sign(grant, self._signing)}"

    @contextmanager
    def _arriving(self, slot: Path, source: Source, limit: int) -> Iterator[tuple[Path, Stored]]:
        """The bytes of `source` in a file of their own that is on disk; removed at the end unless it was renamed."""
        part = slot / f"{_PART}{secrets.token_hex(8)}"
        try:
            with FileIO(part, "xb", opener=_private) as file:
                stored = _copy(source, file, limit)
                os.fsync(file.fileno())
            yield part, stored
        except FileNotFoundError:
            raise Gone from None
        finally:
            part.unlink(missing_ok=True)


def _copy(source: Source, file: FileIO, limit: int) -> Stored:
    digest, size = hashlib.sha256(), 0
    while piece := source.read(min(CHUNK, limit - size + 1)):
        size += len(piece)
        if size > limit:
            raise TooLarge
        digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[file.write(view) :]
    return Stored(size, digest.hexdigest())


def _pieces(file: FileIO, length: int) -> Iterator[bytes]:
    while length > 0:
        with _mapped():
            piece = file.read(min(CHUNK, length))
        if not piece:
            raise Mismatch("the object is shorter than it was")
        length -= len(piece)
        yield piece


def _measure(path: Path) -> Stored:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, hashlib.sha256)
            return Stored(os.fstat(file.fileno()).st_size, digest.hexdigest())
    except FileNotFoundError:
        raise nothing_came() from None


def _arrived(slot: Path) -> Sequence[Path]:
    return [path for path in _listed(slot) if _SHA256.match(path.name)]


def _listed(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _modified(path: Path) -> dt.datetime | None:
    try:
        return dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)
    except FileNotFoundError:
        return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in a folder, among processes too. Raises FileNotFoundError where there is none."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _sync_folder(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


@contextmanager
def _mapped() -> Iterator[None]:
    """What the file system says, as StorageError; the log has its own words."""
    try:
        yield
    except OSError as error:
        logger.warning("storage_failed", error=errno.errorcode.get(error.errno or 0, "?"), kind=type(error).__name__)
        raise StorageError(full=error.errno in _FULL) from error
