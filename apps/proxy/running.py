"""The exchanges that this process carries: how many threads they may hold, and who ends them from outside.

`Gate` counts threads (house.md, "gunicorn"): exchanges longer than `LONG_SECONDS` hold at most a set number of them,
and all together leave some free, so that `/healthz` always answers; of both no user takes all (`Shares`). `Watchdog` is
one thread a process; every 2 s it looks at the login and the device of all that run, in one Redis call and one query,
and does nothing while none runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from apps.common.errors import DomainError
from apps.common.observability import metrics
from tunnel.contract import Shares, class_of

logger = structlog.get_logger(__name__)

LONG_SECONDS: Final = 5.0
STALL_SECONDS: Final = 0.5
"""If all room is taken and no exchange began or ended for this long, the next request is refused at once. While
exchanges come and go a request waits for its turn, which takes milliseconds; waiting requests hold the threads that
are left, so they may not wait for long."""
ENTRY_SECONDS: Final = 2.0
"""The longest wait for room in any case."""
WATCH_SECONDS: Final = 2.0
RETRY_AFTER: Final = 5
LONG_POOL: Final = "long_exchanges"
"""The name of the pool of long exchanges, for Prometheus."""


class Running:
    """One exchange in flight. `login` is the login session's token hash, empty for the static user."""

    __slots__ = ("_gate", "_verdict", "login", "long", "started", "target", "user_id")

    def __init__(self, gate: Gate, *, device_id: str, epoch: int, user_id: str, login: str) -> None:
        self._gate = gate
        self._verdict = ""
        self.target = (device_id, epoch)
        """The device and its epoch: one value, since another thread reads it while an exchange turns elsewhere."""
        self.user_id = user_id
        self.login = login
        self.started = time.monotonic()
        self.long = False

    def __repr__(self) -> str:
        return f"<Running device={self.target[0]} long={self.long} {self._verdict or 'going on'}>"

    @property
    def ended(self) -> str:
        """The error code with which the exchange must end now; empty: go on. Read by its own thread."""
        if not self.long and time.monotonic() - self.started > LONG_SECONDS and not self._gate.claim_long(self):
            self._verdict = self._verdict or "OVERLOADED"
        return self._verdict

    def end(self, code: str) -> None:
        """Have the exchange end with `code`, within `forwarder_stream.TICK`. From any thread; the first code counts."""
        self._verdict = self._verdict or code


class Gate:
    """Room for exchanges in one process. Thread-safe."""

    def __init__(self, *, threads: int, long_limit: int) -> None:
        self._threads: Shares[None] = Shares(max(1, threads - max(1, threads // 16)))
        self._long: Shares[None] = Shares(long_limit)
        self._changed = threading.Condition()
        self._running: set[Running] = set()
        self._moved_at = 0.0

    def __repr__(self) -> str:
        long = self._long
        return f"<Gate {len(self._running)}/{self._threads.limit} long={long.taken}/{long.limit}>"

    def running(self) -> list[Running]:
        """A snapshot of the exchanges in flight."""
        with self._changed:
            return list(self._running)

    @contextmanager
    def held(self, running: Running) -> Iterator[None]:
        """`enter`; `leave` only if the block raises: otherwise whoever carries the exchange on calls `leave`."""
        self.enter(running)
        try:
            yield
        except BaseException:
            self.leave(running)
            raise

    def enter(self, running: Running) -> None:
        """Take room for one exchange (one thread). Raises DomainError OVERLOADED."""
        owner, asked = running.user_id, time.monotonic()
        with self._changed:
            while (may_turn_long := self._long.may_take(owner)) and not self._threads.may_take(owner):
                left = min(self._moved_at + STALL_SECONDS, asked + ENTRY_SECONDS) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if not may_turn_long or not self._threads.take(owner):
                raise DomainError("OVERLOADED", retry_after=RETRY_AFTER)
            running.started = self._moved_at = time.monotonic()
            self._running.add(running)

    def claim_long(self, running: Running) -> bool:
        """Count the exchange as a long one: after LONG_SECONDS, or at once if its answer has no end. False: no room."""
        with self._changed:
            if not running.long and running in self._running:
                if not self._long.take(running.user_id):
                    metrics.places_refused(LONG_POOL, class_of(running.user_id))
                    return False
                running.long = True
                self._tell()
            return True

    def leave(self, running: Running) -> bool:
        """Give the room back. Returns whether the exchange held any: a second call changes nothing."""
        with self._changed:
            held = running in self._running
            if held:
                self._running.remove(running)
                self._threads.give_back(running.user_id)
                if running.long:
                    self._long.give_back(running.user_id)
                    self._tell()
                self._moved_at = time.monotonic()
                self._changed.notify_all()  # not each that waits may take each place
            return held

    def _tell(self) -> None:
        metrics.tell_places(LONG_POOL, self._long.classes(), self._long.largest())


class Watchdog:
    """Calls `check` with what runs, and `tidy` after it, every 2 s while `snapshot` or `tidy` gives it work.

    `tidy` returns how much is left to tidy. The thread starts with the first `wake` of the process and is its only one;
    what either raises is logged, and both are called again 2 s later.
    """

    def __init__(
        self,
        snapshot: Callable[[], list[Running]],
        check: Callable[[list[Running]], None],
        tidy: Callable[[float], int],
        *,
        seconds: float = WATCH_SECONDS,
    ) -> None:
        self._snapshot = snapshot
        self._check = check
        self._tidy = tidy
        self._seconds = seconds
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Report that an exchange began."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="proxy-watchdog", daemon=True)
                    self._thread.start()
        if not self._work.is_set():
            self._work.set()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopped.set()
        self._work.set()
        thread = self._thread
        if thread is not None:
            thread.join(self._seconds + 5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._work.wait()
            if self._stopped.wait(self._seconds):
                return
            # Cleared before the look: an exchange that begins meanwhile sets it again.
            self._work.clear()
            try:
                left = self._round()
            except Exception as error:  # any: nobody else ends what runs here, so no bug may end this thread
                logger.exception("watchdog_failed", error=repr(error))
                left = True
            if left:
                self._work.set()

    def _round(self) -> bool:
        """Check and tidy once. Returns whether another round is needed. A check that fails does not prevent tidying."""
        running = self._snapshot()
        try:
            if running:
                self._check(running)
        finally:
            left = self._tidy(time.monotonic())
        return bool(left or running)
