"""One loop a process for the exchanges that last: none of them holds a thread.

It knows carriages and their sockets; what one was about, whoever hands it over says by a callback. What may wait for a
database or a daemon is done in a few threads beside the loop.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import structlog

from apps.common.db.connections import release_database
from apps.common.observability import metrics
from apps.tunnels.carriage import NOTHING, Carriage
from tunnel.contract import Shares, class_of

logger = structlog.get_logger(__name__)

POOL: Final = "long_exchanges"
"""The name of the pool of long exchanges, for Prometheus."""
TICK_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 5.0
"""How often the daemons of those that stand still are looked for."""
SILENT_SECONDS: Final = 5.0
"""Without a byte for so long an exchange is one whose daemon is looked for; in two looks in a row it must be gone."""
FLUSH_SECONDS: Final = 10.0
"""How long a client that reads nothing may keep the reset of its connection waiting."""
FLUSH_MAX_SECONDS: Final = 300.0
"""And one that reads a little now and then."""
_FLUSH_LOOK: Final = 0.02
_EVENTS: Final = 256
_ASIDE: Final = 8
_WAITING: Final = 32
"""Threads for those that may wait for a daemon or a device; no owner has all of them."""
COPIES: Final = 32
"""Answers of which a copy is kept at a time, a megabyte at most each."""
TAIL_SECONDS: Final = 60.0
"""How long a client may take nothing of an answer whose end is known."""


class LongExchange:
    """One exchange in the loop. `ended` is called in the loop's thread once nothing is left to move."""

    __slots__ = ("carriage", "client", "ended", "moved_at", "node", "sent", "watched")

    def __init__(self, carriage: Carriage, ended: Callable[[], None]) -> None:
        self.carriage = carriage
        self.ended = ended
        self.client = carriage.client.fileno()
        self.node = -1
        self.watched = (0, 0)
        self.moved_at = time.monotonic()
        self.sent = 0


class LongExchanges:
    """All of a process. `adopt` may be called from any thread; the loop's thread starts with the first one.

    Args:
        limit: how many there may be; of these no owner takes all (`Shares`).
        dead: which of these daemons' URLs give no answer; called aside.
        tidy: called aside each TICK_SECONDS while there are any.
    """

    def __init__(self, limit: int, *, dead: Callable[[set[str]], set[str]], tidy: Callable[[], None]) -> None:
        self._shares: Shares[None] = Shares(limit)
        self._copies: Shares[None] = Shares(COPIES)
        self._waiters: Shares[None] = Shares(_WAITING)
        self._dead = dead
        self._tidy = tidy
        self._lock = threading.Lock()
        self._new: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._poll: Any = select.epoll() if hasattr(select, "epoll") else _Poll()
        self._woken, self._wake_end = _pipe()
        self._poll.register(self._woken, select.POLLIN)
        self._by_fd: dict[int, LongExchange] = {}
        self._running: set[LongExchange] = set()
        self._flushing: list[_Flushing] = []
        self._aside = ThreadPoolExecutor(_ASIDE, thread_name_prefix="long-exchange-aside")
        self._waiting = ThreadPoolExecutor(_WAITING, thread_name_prefix="long-exchange-waits")
        self._tidying = self._looking = False
        self._suspects: set[str] = set()

    def __repr__(self) -> str:
        return f"<LongExchanges {len(self._running)} {self._shares!r}>"

    def __len__(self) -> int:
        return len(self._running)

    # --- from any thread ----------------------------------------------------------------------------------------------
    def claim(self, owner: str) -> bool:
        """Take a place for an exchange of that owner, to be given back by `leave`. False: there is none."""
        with self._lock:
            if self._shares.take(owner):
                return True
        metrics.places_refused(POOL, class_of(owner))
        return False

    def leave(self, owner: str) -> None:
        """Give a place back."""
        with self._lock:
            self._shares.give_back(owner)

    def claim_copy(self, owner: str) -> bool:
        """Whether a copy of an answer may be kept for that owner; to be given back by `leave_copy`."""
        with self._lock:
            return self._copies.take(owner)

    def leave_copy(self, owner: str) -> None:
        """Give a copy's place back."""
        with self._lock:
            self._copies.give_back(owner)

    def adopt(self, exchange: LongExchange) -> None:
        """Move its bytes from now on."""
        self._call(lambda: self._take(exchange))

    def when_flushed(self, unsent: Callable[[], int], done: Callable[[], None]) -> None:
        """Call `done` once the peer has what was written to it, or after a while: a reset drops what is under way."""
        self._call(lambda: self._flushing.append(_Flushing(unsent, done)))

    def aside(self, work: Callable[[], None]) -> None:
        """Do what may wait in a thread beside the loop."""
        self._aside.submit(_logged, work)

    def waiting(self, owner: str, work: Callable[[], None]) -> bool:
        """Do what may wait for seconds in a thread beside the loop. False: the owner has enough that waits."""
        with self._lock:
            if not self._waiters.take(owner):
                return False

        def done() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._waiters.give_back(owner)

        self._waiting.submit(_logged, done)
        return True

    def _call(self, work: Callable[[], None]) -> None:
        self._new.append(work)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="long-exchanges", daemon=True)
                    thread.start()
                    self._thread = thread
        with suppress(BlockingIOError):
            os.write(self._wake_end, b"\0")

    def _tell(self) -> None:
        """Not with each exchange: it would cost more than the place."""
        with self._lock:
            told = self._shares.classes(), self._shares.largest()
        metrics.tell_places(POOL, *told)

    # --- the loop -----------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            try:
                self._turns()
            except Exception as error:  # any: nobody else moves these bytes, so no bug may end this thread
                logger.exception("long_exchanges_failed", error=repr(error))
                time.sleep(_FLUSH_LOOK)

    def _turns(self) -> None:
        ticked = looked = time.monotonic()
        while True:
            happened = self._poll.poll(_FLUSH_LOOK if self._flushing else TICK_SECONDS, _EVENTS)
            now = time.monotonic()
            self._turn(happened, now)
            if self._flushing:
                self._look_at_flushing(now)
            if now - ticked >= TICK_SECONDS:
                ticked = now
                self._note_progress(now)
                self._tell()
                if not self._tidying and self._running:
                    self._tidying = True
                    self.aside(self._tidied)
            if now - looked >= LOOK_SECONDS:
                looked = now
                self._look_at_silent(now)

    def _turn(self, happened: list[tuple[int, int]], now: float) -> None:
        told: dict[LongExchange, list[int]] = {}
        woken = False
        for fd, event in happened:
            if fd == self._woken:
                woken = True
                continue
            exchange = self._by_fd.get(fd)
            if exchange is None:
                continue
            events = told.setdefault(exchange, [0, 0])
            events[fd != exchange.client] |= event
        for exchange, (client, node) in told.items():
            exchange.moved_at = now
            self._guarded(exchange, self._moved, client, node)
        if woken:
            self._take_new()

    def _moved(self, exchange: LongExchange, client: int, node: int) -> None:
        exchange.carriage.turn(client, node)
        self._after(exchange)

    def _guarded(self, exchange: LongExchange, work: Callable[..., None], *args: int) -> None:
        """A bug in one exchange ends that one alone."""
        try:
            work(exchange, *args)
        except Exception as error:
            logger.exception("long_exchange_failed", error=repr(error))
            exchange.carriage.left = True
            self._drop(exchange)

    def _take_new(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._woken, 4096):
                pass
        while self._new:
            try:
                self._new.popleft()()
            except Exception as error:  # whoever asked for it is not in this thread
                logger.exception("long_exchanges_failed", error=repr(error))

    def _take(self, exchange: LongExchange) -> None:
        self._running.add(exchange)
        self._guarded(exchange, self._begin)

    def _begin(self, exchange: LongExchange) -> None:
        node = exchange.carriage.node
        if _is_over(exchange.carriage) or node is None:
            self._drop(exchange)
            return
        exchange.node = node.sock.fileno()
        self._by_fd[exchange.client] = exchange
        self._by_fd[exchange.node] = exchange
        exchange.watched = (NOTHING, NOTHING)
        self._watch(exchange)

    def _after(self, exchange: LongExchange) -> None:
        """Watch what it waits for now, or let it go."""
        if _is_over(exchange.carriage):
            self._drop(exchange)
            return
        self._watch(exchange)

    def _watch(self, exchange: LongExchange) -> None:
        wanted = exchange.carriage.interests()
        for fd, before, now in zip((exchange.client, exchange.node), exchange.watched, wanted, strict=True):
            if now == before:
                continue
            if now == NOTHING:
                self._poll.unregister(fd)
            elif before == NOTHING:
                self._poll.register(fd, now)
            else:
                self._poll.modify(fd, now)
        exchange.watched = wanted

    def _drop(self, exchange: LongExchange) -> None:
        if exchange not in self._running:
            return
        for fd in (exchange.client, exchange.node):
            if self._by_fd.get(fd) is exchange:
                del self._by_fd[fd]
                with suppress(OSError, KeyError):
                    self._poll.unregister(fd)
        self._running.discard(exchange)
        exchange.ended()

    # --- time ---------------------------------------------------------------------------------------------------------
    def _tidied(self) -> None:
        try:
            self._tidy()
        finally:
            self._tidying = False

    def _note_progress(self, now: float) -> None:
        """A daemon that writes nothing is not dead where its client takes bytes; a client that takes nothing of what is
        left of an answer is given up, as the daemon gives up one that takes nothing of the rest."""
        for exchange in list(self._running):
            carriage = exchange.carriage
            if carriage.sent != exchange.sent:
                exchange.sent = carriage.sent
                exchange.moved_at = now
            elif carriage.end is not None and now - exchange.moved_at > TAIL_SECONDS:
                carriage.left = True
                self._drop(exchange)

    def _look_at_silent(self, now: float) -> None:
        silent = {
            node.node_url
            for exchange in self._running
            if now - exchange.moved_at > SILENT_SECONDS and (node := exchange.carriage.node) is not None
        }
        if silent and not self._looking:
            self._looking = True
            self.aside(lambda: self._find_dead(silent))

    def _find_dead(self, silent: set[str]) -> None:
        try:
            failing = self._dead(silent)
        finally:
            self._looking = False
        dead, self._suspects = failing & self._suspects, failing
        if dead:
            self._call(lambda: self._end_at(dead))

    def _end_at(self, dead: set[str]) -> None:
        now = time.monotonic()
        for exchange in list(self._running):
            node = exchange.carriage.node
            if node is not None and node.node_url in dead and now - exchange.moved_at > SILENT_SECONDS:
                exchange.carriage.lost = True
                self._drop(exchange)

    def _look_at_flushing(self, now: float) -> None:
        waiting, self._flushing = self._flushing, []
        for each in waiting:
            if each.waits(now):
                self._flushing.append(each)
                continue
            try:
                each.done()
            except Exception as error:  # of one connection
                logger.exception("long_exchange_failed", error=repr(error))


class _Flushing:
    """A connection that is to be reset once its peer has what was written to it."""

    __slots__ = ("_began", "_left", "_moved_at", "_unsent", "done")

    def __init__(self, unsent: Callable[[], int], done: Callable[[], None]) -> None:
        self._unsent = unsent
        self._left = unsent()
        self._began = self._moved_at = time.monotonic()
        self.done = done

    def waits(self, now: float) -> bool:
        """Whether more of it may still arrive."""
        left = self._unsent()
        if left < self._left:
            self._left, self._moved_at = left, now
        return left > 0 and now - self._moved_at < FLUSH_SECONDS and now - self._began < FLUSH_MAX_SECONDS


def _is_over(carriage: Carriage) -> bool:
    """Whether the loop has nothing more to move, for now."""
    return carriage.over or carriage.waits_for_release


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # any: nobody waits for this thread's word
        logger.exception("long_exchange_aside_failed", error=repr(error))
    finally:
        release_database()


class _Poll:
    """`select.poll` in the words of `epoll`, for systems that have none."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, seconds: float, _most: int) -> list[tuple[int, int]]:
        """What happened."""
        return self._poll.poll(seconds * 1000)


def _pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    return read_end, write_end
