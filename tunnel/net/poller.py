"""Which of the resting client connections have something to read: one task asks the kernel for all of them.

A connection that rests costs no task switch and no system call to wait again: it stays registered, and is called. It
does not know what is read.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

import trio

_BATCH: Final = 64  # connections that are called before other tasks have their turn
AVAILABLE: Final = hasattr(select, "epoll")
"""Whether the system has what this needs (Linux). Elsewhere each connection's task waits for itself."""


class Poller:
    """Sockets, each with what is called as long as it is readable, at its end or broken. `run` it."""

    __slots__ = ("_calls", "_epoll", "alone")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self.alone = False
        """Whether who is called now is the only one that has something to read."""

    def __repr__(self) -> str:
        return f"<Poller {len(self._calls)} resting>"

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, descriptor: int, call: Callable[[], None]) -> None:
        """Call `call` from now on; it must read or `remove`, and neither wait nor raise."""
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        self._calls[descriptor] = call

    def remove(self, descriptor: int) -> None:
        """No more calls. Before the socket is closed: its number may be another's at once."""
        if self._calls.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Call who has something to read, until cancelled."""
        epoll, calls = self._epoll, self._calls
        descriptor = epoll.fileno()
        try:
            while True:
                await trio.lowlevel.wait_readable(descriptor)
                found = epoll.poll(0, _BATCH)
                self.alone = len(found) == 1
                for ready, _ in found:
                    call = calls.get(ready)
                    if call is not None:
                        call()
        finally:
            trio.lowlevel.notify_closing(descriptor)
            epoll.close()
