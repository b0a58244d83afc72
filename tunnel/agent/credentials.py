"""The agent's memory: the credential file and the state file beside it.

Both are replaced whole (a temporary file, fsync, rename), so that a power cut leaves the old or the new one. It does
not know the network.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

BAD_FILES: Final = 5


class CredentialError(Exception):
    """The credential file cannot be read or written; the text is the one line shown to the user."""


class DamagedError(CredentialError):
    """The credential file was read, and there is nothing in it that could be used: empty, cut, not ours."""


class AgentBusyError(CredentialError):
    """Another agent runs with the same credential file."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What survives a restart. `instance` is random and stored before the first dial, so that a lost answer to the
    pairing can be asked for again by the same instance (the daemon allows it for ten minutes)."""

    instance: str
    session_token: str = ""
    device_id: str = ""
    url: str = ""
    redeemed: str = ""  # SHA-256 of the pairing token that gave the session token

    def __repr__(self) -> str:  # never the token
        return f"<Credentials device={self.device_id or None} paired={bool(self.session_token)}>"

    def candidates(self, pairing_token: str) -> list[str]:
        """The tokens to present, best first: a pairing token not yet redeemed means that the user pairs anew."""
        if not pairing_token:
            return [self.session_token] if self.session_token else []
        if self.session_token and self.redeemed == fingerprint(pairing_token):
            return [self.session_token, pairing_token]
        return [pairing_token, self.session_token] if self.session_token else [pairing_token]

    def admitted(self, *, token: str, session_token: str | None, device_id: str, url: str) -> Credentials:
        """What to store after the daemon admitted `token` and perhaps gave a new or rotated session token."""
        if not session_token:
            return replace(self, device_id=device_id or self.device_id, url=url)
        redeemed = self.redeemed if token == self.session_token else fingerprint(token)
        return Credentials(self.instance, session_token, device_id or self.device_id, url, redeemed)


def fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def write_private(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `path` by a file of mode 0600, atomically; `durable` also forces it and its folder to disk.

    Raises CredentialError; the old file is whole then.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600 by itself
    except OSError as error:
        raise CredentialError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise CredentialError(f"{path}: cannot be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> Credentials | None:
    """The stored credentials, None if there is no file.

    Raises DamagedError for a file whose content is worth nothing, CredentialError for one that cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read: {error.strerror}") from error
    if not content:
        raise DamagedError(f"{path}: the credential file is empty")
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: the credential file is damaged") from error
    names = [field.name for field in fields(Credentials)]
    if not isinstance(raw, dict) or not all(isinstance(raw.get(name, ""), str) for name in names):
        raise DamagedError(f"{path}: not a credential file")
    if not raw.get("instance"):
        raise DamagedError(f"{path}: the instance is missing in the credential file")
    return Credentials(**{name: raw.get(name, "") for name in names})


def set_aside(path: Path) -> Path | None:
    """Give a damaged file another name (`….bad`, `….bad2` …), so that a person can still look into it.

    The new name; None where that cannot be done. At most BAD_FILES are kept: the last name is used again.
    """
    names = [f"{path.name}.bad{number if number > 1 else ''}" for number in range(1, BAD_FILES + 1)]
    target = next((kept for name in names if not (kept := path.with_name(name)).exists()), path.with_name(names[-1]))
    try:
        path.replace(target)
    except OSError:
        return None
    return target


def store(path: Path, credentials: Credentials) -> None:
    """Write the credential file (0600, atomic, fsync). Raises CredentialError."""
    write_private(path, json.dumps(asdict(credentials), indent=1).encode() + b"\n")


def new_credentials() -> Credentials:
    """Those of a box that is not paired yet: a random instance."""
    return Credentials(instance=secrets.token_hex(16))


def state_path(credentials: Path) -> Path:
    """Where the running agent says how it is, for `visiona-agent status`."""
    return credentials.with_name(credentials.name + ".state")


def write_state(credentials: Path, state: dict[str, Any]) -> None:
    """Replace the state file; not forced to disk, since it is worth nothing after a power cut."""
    write_private(state_path(credentials), json.dumps(state, indent=1).encode() + b"\n", durable=False)


def read_state(credentials: Path) -> dict[str, Any] | None:
    """What the last agent said, None if it never ran or the file is damaged."""
    try:
        state = json.loads(state_path(credentials).read_bytes())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


@contextmanager
def only_agent(credentials: Path) -> Iterator[bool]:
    """Hold the file against a second agent, which would otherwise take the tunnel over and over (close code 4409).

    Gives True; False where nothing can be locked (no folder, a file system without locks), which keeps nobody from
    starting. Raises AgentBusyError at once.
    """
    file = _open_lock(credentials, create=True)
    if file is None:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise AgentBusyError(f"another agent is running with {credentials}") from None
            locked = False
        yield locked


def in_use(credentials: Path) -> bool:
    """Whether an agent runs with this file now."""
    file = _open_lock(credentials, create=False)
    if file is None:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not take each other for one
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _open_lock(credentials: Path, *, create: bool) -> BinaryIO | None:
    """What is locked: a file beside the credential file; where none can be written, the credential file itself."""
    path = credentials.with_name(credentials.name + ".lock")
    if create:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return path.open("ab")
        except OSError:
            pass  # a read-only file system: what is there can be locked all the same
    for candidate in (path, credentials):
        try:
            return candidate.open("rb")
        except OSError:
            continue
    return None
