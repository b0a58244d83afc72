"""How a worker of the API begins and ends: it listens once it can answer, and no caller is lost when it stops.

SIGTERM of the whole server, in this order: not ready, yet everything is served (the lame-duck time: balancers learn
late); the kernel begins no more connections; what it has accepted is taken and answered with `Connection: close`; the
listener is closed; what is under way ends. A worker that others replace (a reload) leaves the port to them at once.
It knows the listening socket and gunicorn's loop, and nothing of what a connection is.
"""

from __future__ import annotations

import selectors
import sys
import time
from typing import Any, Final

from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from cloud.server.listener import begin_no_more, server_ends

TURN_SECONDS: Final = 1.0
TOLD_SECONDS: Final = 0.25
"""A signal to a whole group reaches a worker before its master has said that the server ends: it waits for that."""
SETTLE_SECONDS: Final = 0.3
"""For handshakes under way when the kernel was told to begin no more: a round trip to the caller."""


class StoppingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker with a loop of its own. The main thread's alone."""

    lameduck_seconds = 0.0
    """After SIGTERM, before anything is refused."""
    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stopping = False
        """True once the worker ends with the whole server; while `alive` is true too, it still accepts everything."""
        self._told_at: float | None = None
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002 - a signal handler's
        """SIGTERM."""
        if self._told_at is None:
            self._told_at = time.monotonic()
        self.method_queue.defer(lambda: None)  # the loop looks at once

    def run(self) -> None:
        """Serve until the worker stops."""
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        self._listen()
        while self.alive and self.is_parent_alive():
            self.notify()
            self.set_accept_enabled(self.nr_conns < self.worker_connections)
            self.wait_for_and_dispatch_events(self._until_next_step())
            self.murder_keepalived()
            self.murder_pending()
            self._step()
        self.alive = False
        self._close_listeners()
        self._finish()

    def _listen(self) -> None:
        """Begin to listen: everything that requests need is set up by now."""
        if self._told_at is not None or server_ends():
            return  # the server ended while this worker was loading
        try:
            for listener in self.sockets:
                listener.listen(self.cfg.backlog)
        except OSError as error:  # another server has taken the port since it was bound
            self.log.error("the port cannot be listened at: %s", error.strerror)  # noqa: TRY400 - one line
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def _until_next_step(self) -> float:
        """Seconds for which the loop may wait."""
        if self._told_at is None:
            return TURN_SECONDS
        until = self._ends_at if self._ends_at is not None else time.monotonic() + 0.02
        return min(TURN_SECONDS, max(0.0, until - time.monotonic()))

    def _step(self) -> None:
        """Take the next step of the stop, if it is due."""
        now = time.monotonic()
        if self._told_at is None:
            if not server_ends():
                return
            # The signal came before this process had handlers of its own, and was lost. The port's other owners tell
            # the kernel to drop callers, who would wait until this one is killed.
            self._told_at = now
        if not self.stopping and server_ends():
            self.stopping = True
            self._ends_at = self._told_at + self.lameduck_seconds
        if self._ends_at is not None:
            self.alive = now < self._ends_at
        elif now - self._told_at >= TOLD_SECONDS:
            self.alive = False

    def _close_listeners(self) -> None:
        """Of a server that ends, take what the kernel has accepted first, so that nobody waits in a closed queue."""
        if self.stopping:
            for listener in self.sockets:
                begin_no_more(listener)
            until = time.monotonic() + SETTLE_SECONDS
            while (left := until - time.monotonic()) > 0:
                self.notify()
                self.set_accept_enabled(True)
                self.wait_for_and_dispatch_events(left)
                self.murder_pending()
            for listener in self.sockets:
                self.take_all(listener)
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()

    def take_all(self, listener: Any) -> None:
        """Take everything that waits at the listener."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Let what is under way end; kept connections for a moment, for a request that is on its way on one of them."""
        self._cap_keepalive(time.monotonic() + STOP_KEEPALIVE_LINGER)
        until = (self._told_at or time.monotonic()) + self.cfg.graceful_timeout - 0.5  # before the master kills
        while self.nr_conns > 0 and time.monotonic() < until:
            self.notify()
            self.wait_for_and_dispatch_events(0.2)
            self.murder_keepalived()
            self.murder_pending()
        self.murder_keepalived(force=True)
        self.tpool.shutdown(wait=False)
        self.poller.close()
        self.method_queue.close()
