"""A pool of places with owners, in which nobody takes what others need. Pure: no clock, no lock, no task.

An owner is a user, else an address (`stranger`). Whoever holds much waits behind those who hold little: a place goes
to the owner that holds least, among equals to the one whose turn it is. Where places are held for long (a transfer, a
stream) that is not enough, since none comes free: there an owner may hold at most `KEPT_FREE` times as many as it
leaves free. Alone it has three quarters of the pool, and who holds none finds one. All strangers together are also one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict, deque
from typing import Final, Generic, TypeVar

KEPT_FREE: Final = 3
_STRANGER: Final = "@"
_IPV6_PREFIX: Final = 64  # what one subscriber is given (RFC 6177 §2)

Waiter = TypeVar("Waiter")


class Crowded(Exception):
    """The queue is full, and no owner in it has more calls there than the one that asks."""


def client_network(address: str) -> str:
    """The text by which clients are told apart by their address, wherever clients are counted.

    It is the IPv4 address (also of an IPv6 address that maps one), or the /64 of an IPv6 address, all of which one
    holder has. Every text that is no address gives "unknown".
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, _IPV6_PREFIX), strict=False).network_address)


def stranger(address: str) -> str:
    """The owner that stands for all unauthenticated callers from the network of `address`."""
    return _STRANGER + client_network(address)


def class_of(owner: str) -> str:
    """The class of an owner: `user` or `stranger`."""
    return "stranger" if owner.startswith(_STRANGER) else "user"


class Shares(Generic[Waiter]):
    """The `limit` places of a pool with their owners, and a queue of at most `queue` waiting calls.

    A waiting call is an object of the caller's. A place is given by `take`, or later by `give_back`, which returns the
    waiting calls that have a place now.

    Args:
        long: places are held for long; then some are kept free for owners that hold few.
    """

    def __init__(self, limit: int, *, queue: int = 0, long: bool = True) -> None:
        self.limit = limit
        self._queue = queue
        self._long = long
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[Waiter]] = {}
        self._turns: dict[int, OrderedDict[str, None]] = {}  # by what they hold, the owners that wait, in turn
        self._strangers = 0
        self.taken = 0
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<Shares {self.taken} of {self.limit} owners={len(self._held)} waiting={self.waiting}>"

    def held(self, owner: str) -> int:
        """How many places an owner holds."""
        return self._held[owner]

    def classes(self) -> dict[str, int]:
        """How many places each class of owners holds."""
        return {"user": self.taken - self._strangers, "stranger": self._strangers}

    def largest(self) -> int:
        """How many places the owner with the most holds."""
        return max(self._held.values(), default=0)

    def may_take(self, owner: str) -> bool:
        """Whether the owner could have a place now."""
        mine = self._held[owner]
        if class_of(owner) == "stranger":
            mine = max(mine, self._strangers)
        free = self.limit - self.taken
        return free > 0 and (not self._long or not mine or mine < KEPT_FREE * (free - 1))

    def take(self, owner: str) -> bool:
        """Take a place for the owner; False: there was none. No waiting call is passed over: none could have had it."""
        free = self.may_take(owner)
        if free:
            self._count(owner, 1)
        return free

    def wait(self, owner: str, waiter: Waiter) -> Waiter | None:
        """Add a call to the queue. In a full queue the owner with most calls loses its newest one, which is returned.

        None: nobody lost one. Raises Crowded if that would be the call itself, so that no owner fills the queue.
        """
        pushed_out = None
        if self.waiting >= self._queue:
            longest = max(self._waiting, key=lambda one: len(self._waiting[one]), default=owner)
            if len(self._waiting.get(longest, ())) <= len(self._waiting.get(owner, ())):
                raise Crowded
            pushed_out = self._waiting[longest][-1]
            self.leave_queue(longest, pushed_out)
        if owner not in self._waiting:
            self._waiting[owner] = deque()
            self._turns.setdefault(self._held[owner], OrderedDict())[owner] = None
        self._waiting[owner].append(waiter)
        self.waiting += 1
        return pushed_out

    def leave_queue(self, owner: str, waiter: Waiter) -> None:
        """Take a call out of the queue. Raises ValueError or KeyError if it is not in it."""
        self._waiting[owner].remove(waiter)
        self._gone(owner)

    def give_back(self, owner: str) -> list[Waiter]:
        """Give a place back. Returns the waiting calls that hold one now; each is to be told, and to give it back."""
        self._count(owner, -1)
        called = []
        while self.taken < self.limit and self.waiting:
            next_one = self._next()
            if next_one is None:
                break
            called.append(self._waiting[next_one].popleft())
            self._gone(next_one)
            self._count(next_one, 1)
        return called

    # --- inside -------------------------------------------------------------------------------------------------------
    def _next(self) -> str | None:
        """The owner that holds least, of those that wait and may have a place; None if there is none."""
        for held in sorted(self._turns):
            for owner in self._turns[held]:
                if self.may_take(owner):
                    return owner
                if class_of(owner) == "user":  # as all users that hold as much
                    break
        return None

    def _gone(self, owner: str) -> None:
        self.waiting -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]
            self._drop_turn(owner)

    def _drop_turn(self, owner: str) -> None:
        level = self._held[owner]
        del self._turns[level][owner]
        if not self._turns[level]:
            del self._turns[level]

    def _count(self, owner: str, by: int) -> None:
        waits = owner in self._waiting
        if waits:
            self._drop_turn(owner)
        self._held[owner] += by
        if not self._held[owner]:
            del self._held[owner]
        if waits:
            self._turns.setdefault(self._held[owner], OrderedDict())[owner] = None
        self.taken += by
        if class_of(owner) == "stranger":
            self._strangers += by
