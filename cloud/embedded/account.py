"""Which user the embedded servers run as.

PostgreSQL refuses to run as root. A root user (a container, a CI machine) therefore gets an unprivileged account for
the servers, and that account must be able to walk to the data and to the server's own files, which may lie below
folders that are closed to others (``/root``, a ``mktemp -d``). The least that does it is an access control entry which
lets that one account pass through, without listing; only where the file system knows no such entries the folder gets
the search bit for others. Anybody but root runs the servers as himself, and nothing is touched.
"""

import errno
import os
import pwd
import shutil
import stat
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cloud.embedded.errors import EmbeddedError

ACCOUNT_NAME = "pgserver"
FALLBACK_NAME = "nobody"

# The extended attribute in which Linux keeps POSIX access control lists (linux/posix_acl_xattr.h): a version, then
# entries of tag, permissions and id, sorted by tag and id.
_ACL_ATTRIBUTE = "system.posix_acl_access"
_ACL_VERSION = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_PASS = 0x1


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user of the servers; user and group are numeric ids."""

    name: str
    user: int
    group: int


def server_account(data: Path) -> Account | None:
    """The account to run the servers as, made when it is missing; None when we are not root and need none.

    ``data`` is PostgreSQL's data folder: one that another user's earlier start has left is served as that user, since
    PostgreSQL takes no data but its own user's.
    """
    if os.geteuid() != 0:
        return None
    try:
        owner = data.stat()
    except OSError:
        owner = None
    if owner is not None and owner.st_uid != 0:
        return Account(_name(owner.st_uid), owner.st_uid, owner.st_gid)
    return _find(ACCOUNT_NAME) or _create() or _required(FALLBACK_NAME)


def _find(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, entry.pw_gid)


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _create() -> Account | None:
    if (useradd := shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")) is None:
        return None
    command = [useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false"]
    # Two starts at once: one of them fails on the lock of the password file, and both find the account afterwards.
    subprocess.run([*command, ACCOUNT_NAME], check=False, capture_output=True, timeout=20)
    return _find(ACCOUNT_NAME)


def _required(name: str) -> Account:
    if (account := _find(name)) is None:
        raise EmbeddedError(
            f"PostgreSQL will not run as root, and there is no user {ACCOUNT_NAME} or {name} to run it as"
        )
    return account


def own(path: Path, account: Account | None) -> None:
    """Give one file or folder to the servers' account; nothing to do when they run as ourselves."""
    if account is not None:
        os.chown(path, account.user, account.group)


def open_way(path: Path, account: Account | None) -> list[Path]:
    """Let the account pass through every folder above ``path`` that is closed to it.

    Returns the folders that had to be opened, for a line to the user. Raises EmbeddedError when one cannot be.
    """
    if account is None:
        return []
    opened = []
    for folder in reversed(path.resolve().parents):
        if _may_pass(folder, account):
            continue
        try:
            _let_pass(folder, account)
        except OSError as error:
            raise EmbeddedError(
                f"user {account.name} (PostgreSQL will not run as root) cannot pass through {folder}: {error.strerror}"
            ) from error
        opened.append(folder)
    return opened


def open_tree(folder: Path, account: Account | None) -> None:
    """Make the server's own files readable for its account: a strict umask at installation had closed them."""
    if account is None:
        return
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if wanted != mode:
            path.chmod(wanted)


def _may_pass(folder: Path, account: Account) -> bool:
    status = folder.stat()
    if status.st_uid == account.user:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.group:
        return bool(status.st_mode & stat.S_IXGRP)
    if status.st_mode & stat.S_IXOTH:
        return True
    entries = _read_acl(folder)
    # A later chmod of the folder's owner sets the mask, and with it takes away what a named user was given.
    mask = next((permissions for tag, permissions, _ in entries if tag == _MASK), _PASS)
    return any(
        tag == _USER and identity == account.user and permissions & mask & _PASS
        for tag, permissions, identity in entries
    )


def _let_pass(folder: Path, account: Account) -> None:
    mode = folder.stat().st_mode
    entries = _read_acl(folder) or [
        (_USER_OBJ, mode >> 6 & 7, _NO_ID),
        (_GROUP_OBJ, mode >> 3 & 7, _NO_ID),
        (_MASK, mode >> 3 & 7, _NO_ID),
        (_OTHER, mode & 7, _NO_ID),
    ]
    if not any(tag == _MASK for tag, _, _ in entries):
        group = next(permissions for tag, permissions, _ in entries if tag == _GROUP_OBJ)
        entries.append((_MASK, group, _NO_ID))
    kept = [entry for entry in entries if not (entry[0] == _USER and entry[2] == account.user)]
    # The mask bounds what a named user gets, so it must hold the search bit as well.
    kept = [(tag, permissions | (_PASS if tag == _MASK else 0), identity) for tag, permissions, identity in kept]
    kept.append((_USER, _PASS, account.user))
    kept.sort(key=lambda entry: (entry[0], entry[2]))
    value = _ACL_VERSION.pack(2) + b"".join(_ACL_ENTRY.pack(*entry) for entry in kept)
    try:
        os.setxattr(folder, _ACL_ATTRIBUTE, value)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}:
            raise
        folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _read_acl(folder: Path) -> list[tuple[int, int, int]]:
    try:
        value = os.getxattr(folder, _ACL_ATTRIBUTE)
    except (AttributeError, OSError):
        return []  # no list on this folder, or no lists on this system: its mode says it all
    return [_ACL_ENTRY.unpack_from(value, at) for at in range(_ACL_VERSION.size, len(value), _ACL_ENTRY.size)]
