"""What an object store is to the rest of the control plane, whichever it is: the words that both stores speak.

A store knows keys and bytes: no rows, no users, no HTTP.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Protocol

from django.utils.translation import gettext_lazy as _

from apps.common.errors import DomainError

CHUNK: Final = 1 << 20
"""Bytes that pass through memory at a time."""
UPLOADS: Final = "uploads/"
"""Where bytes lie before they are checked: `uploads/<name of the upload>`."""
OBJECTS: Final = "models/"
"""Where checked bytes lie."""
WITHDRAWN: Final = "deleted/"
"""Where the bytes of deleted models lie: under the rest of their key, where no URL that is out leads."""
_KEY: Final = re.compile(r"(?:uploads|models|deleted)/[0-9a-f][0-9a-f/-]{0,200}\Z")


Progress = Callable[[], None]
"""Called by what takes long, while it goes on."""


class StorageError(DomainError):
    """503: the storage does not answer, or has no room. api.md has no code of its own for it (docs/errors.md)."""

    def __init__(self, *, full: bool = False) -> None:
        text = _("The storage of models has no room left.") if full else _("The storage of models cannot be reached.")
        super().__init__("DATABASE_UNAVAILABLE", text, details={"part": ["storage"]}, retry_after=30 if full else 5)


class Mismatch(Exception):
    """The bytes are missing, or are not those that were promised. The text says which, for a person."""


def nothing_came() -> Mismatch:
    """Where an upload has brought no bytes, or none that are whole."""
    return Mismatch(_("No bytes have arrived: PUT them first."))


class TooLarge(Exception):
    """More bytes than promised."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that are there: how many, and their SHA-256 in lower-case hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a multipart upload: its number from 1, and where to PUT it."""

    number: int
    url: str


@dataclass(frozen=True, slots=True)
class Upload:
    """How to send the bytes. Either `url` and `headers` (all that must be sent), or `part_size` and `parts`.

    `key` is where they arrive: to be kept with `upload_id`, for `settle` and `discard`.
    """

    key: str
    expires_at: dt.datetime
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    part_size: int = 0
    parts: Sequence[Part] = ()
    upload_id: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """What an uploader says of the bytes to come. `sha256` is empty when it says nothing of it.

    `owner`: in whose share of the transfers they count.
    """

    upload_key: str
    object_key: str
    size: int
    sha256: str
    expires_at: dt.datetime
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something found in the store: an object, an upload that waits to be checked, or a multipart upload.

    `withdrawn`: an object that lies where deleted models' do; `key` is the one that it was made under.
    """

    key: str
    modified_at: dt.datetime
    upload_id: str = ""
    withdrawn: bool = False


class ObjectStore(Protocol):
    """Every call may raise StorageError; none waits without an end.

    Attributes:
        settles_at_once: whether `settle` and `discard` neither read bytes nor wait for another machine.
    """

    settles_at_once: bool

    def begin(self, promise: Promise, *, base_url: str) -> Upload:
        """Make room for an upload. `base_url`: the API as the uploader reaches it (`https://host`)."""

    def settle(
        self,
        promise: Promise,
        *,
        upload_id: str = "",
        parts: Sequence[tuple[int, str]] | None = None,
        progress: Progress = ...,
    ) -> Stored:
        """Check the uploaded bytes and put them under `object_key`, where they stay. Again: the same answer.

        `parts`: (number, etag) of a multipart upload. `progress` is called while it lasts, at least once for each MiB
        that is read back; what it raises ends the call, and leaves all as it was. Raises Mismatch; the upload may then
        be tried again.
        """

    def put(self, key: str, source: BinaryIO, *, limit: int) -> Stored:
        """Keep what `source` has, under `key`, all or nothing. Raises TooLarge over `limit` bytes."""

    def open_range(self, key: str, start: int, length: int) -> AbstractContextManager[Iterator[bytes]]:
        """`length` bytes from `start` on, in pieces, of a withdrawn object too.

        Raises Mismatch where there is no such object or range.
        """

    def withdraw(self, key: str) -> None:
        """Put an object where no URL leads that was ever given out. What is not there is no error."""

    def reinstate(self, key: str) -> None:
        """Put a withdrawn object back in its place. What is not there is no error."""

    def discard(self, key: str, *, upload_id: str = "") -> None:
        """Remove an object, withdrawn or not, or an upload with all that belongs to it.

        What is not there is no error.
        """

    def problem(self) -> str:
        """Why it cannot serve though it answers, in words for an operator; empty: it can, as far as is known."""

    def leftovers(self) -> Iterator[Leftover]:
        """Everything there is."""

    def download_url(
        self, key: str, *, filename: str, stored: Stored, expires_at: dt.datetime, base_url: str, owner: str = ""
    ) -> str:
        """Where `owner` may GET an object, without any further credential."""


def no_progress() -> None:
    """A Progress that tells nobody."""


def is_key(key: str) -> bool:
    """Whether it is one that we make."""
    return bool(_KEY.match(key)) and "//" not in key and not key.endswith("/")


def withdrawn(key: str) -> str:
    """Where an object lies once it is withdrawn."""
    return WITHDRAWN + check_key(key).removeprefix(OBJECTS)


def check_key(key: str) -> str:
    """The key, if it is one that we make. Raises ValueError: nothing else ever names a file or an object."""
    if not is_key(key):
        raise ValueError("not a key of the storage")
    return key


def check(promise: Promise, stored: Stored) -> None:
    """Raises Mismatch if the bytes are not those that were promised."""
    if stored.size != promise.size:
        raise Mismatch(_("%(came)d bytes have arrived, %(promised)d were promised.") % _both(stored.size, promise.size))
    if promise.sha256 and stored.sha256 != promise.sha256:
        said = _("The SHA-256 of what has arrived is %(came)s, %(promised)s was promised.")
        raise Mismatch(said % _both(stored.sha256, promise.sha256))


def _both(came: int | str, promised: int | str) -> dict[str, int | str]:
    return {"came": came, "promised": promised}
