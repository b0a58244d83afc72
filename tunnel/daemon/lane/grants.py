"""What Django has said about callers: the grants that are kept, and what is known of credentials and addresses.

Bounded stores and their rules, without a clock or a task of their own. What is kept goes by the parsed credential,
never by its spelling, and no user or address takes what others need.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from tunnel.contract import client_network
from tunnel.http import ProxyError

SIZE: Final = 10_000
"""Grants kept."""
_CREDENTIALS: Final = 20_000  # that were found good
_REFUSED: Final = 10_000  # credentials that are remembered as refused
_REFUSED_SECONDS: Final = 3.0
_ADDRESSES: Final = 10_000
_BURST: Final = 60.0
_PER_SECOND: Final = 5.0
"""Look-ups that Django refuses, of one address: so many at once, and so many a second on the whole."""


class Keepable(Protocol):
    """What is known here of a grant."""

    key: bytes
    user_id: str
    expires: float


Kept = TypeVar("Kept", bound=Keepable)
Name = TypeVar("Name")
Value = TypeVar("Value")


class Grants(Generic[Kept]):
    """The grants in the order in which they came. When there are too many, whoever has most loses the oldest."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._of_user: dict[str, OrderedDict[bytes, None]] = {}
        self.find = self._kept.get
        """The grant under a key, or None; whether it is still good, its times tell."""

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, grant: Kept, now: float) -> None:
        """Keep a grant under its key."""
        self.pop(grant.key)
        while self._kept and next(iter(self._kept.values())).expires <= now:
            self.pop(next(iter(self._kept)))
        if len(self._kept) >= self._size:
            most = max(self._of_user.values(), key=len)
            self.pop(next(iter(most)))
        self._kept[grant.key] = grant
        self._of_user.setdefault(grant.user_id, OrderedDict())[grant.key] = None

    def pop(self, key: bytes) -> None:
        """Drop what is under a key, if anything is."""
        grant = self._kept.pop(key, None)
        if grant is not None:
            own = self._of_user[grant.user_id]
            del own[key]
            if not own:
                del self._of_user[grant.user_id]

    def drop(self, concerned: Callable[[Kept], bool]) -> int:
        """Drop all that are concerned; how many those were."""
        gone = [key for key, grant in self._kept.items() if concerned(grant)]
        for key in gone:
            self.pop(key)
        return len(gone)


class Credentials:
    """Which credentials were good, and which were refused a moment ago; by their hashes."""

    def __init__(self) -> None:
        self._users: OrderedDict[bytes, str] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, ProxyError]] = OrderedDict()

    def user_of(self, name: bytes) -> str | None:
        """The user whose credential that was when Django was asked last; None: a stranger's."""
        return self._users.get(name)

    def good(self, name: bytes, user_id: str) -> None:
        """Django took it."""
        self._refused.pop(name, None)
        _put(self._users, name, user_id, _CREDENTIALS)

    def bad(self, name: bytes, denied: ProxyError, now: float) -> None:
        """Django does not know it, or no more."""
        self._users.pop(name, None)
        _put(self._refused, name, (now + _REFUSED_SECONDS, denied), _REFUSED)

    def refusal(self, name: bytes, now: float) -> ProxyError | None:
        """What Django said about a bad one some seconds ago."""
        until, denied = self._refused.get(name, (0.0, None))
        return denied if now < until else None

    def forget_refusals(self) -> None:
        """Something has changed at Django: let it be asked."""
        self._refused.clear()


class Addresses:
    """How many bad credentials came from where: a bucket of refusals for each address, /64 of IPv6."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, and when that was

    def check(self, address: str, now: float) -> None:
        """Raise ProxyError RATE_LIMITED if that address had too many refused to be asked about another one."""
        left = self._left(client_network(address), now)
        if left < 1.0:
            raise ProxyError("RATE_LIMITED", "too many bad credentials from one address", retry_after=1)

    def refused(self, address: str, now: float) -> None:
        """One more."""
        network = client_network(address)
        _put(self._buckets, network, (max(0.0, self._left(network, now) - 1.0), now), _ADDRESSES)

    def _left(self, network: str, now: float) -> float:
        left, at = self._buckets.get(network, (_BURST, now))
        return min(_BURST, left + (now - at) * _PER_SECOND)


def _put(kept: OrderedDict[Name, Value], key: Name, value: Value, size: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > size:
        kept.popitem(last=False)
