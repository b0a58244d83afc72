"""Several daemons on one host under one parent: who listens where, who is started again, how an order reaches all.

The parent holds every listening socket and forks the workers; it serves nobody itself. On Linux each worker has a
socket of its own for the public port (SO_REUSEPORT): the kernel spreads agents by a hash of their address and port,
whereas of processes that wait on one shared socket the last to go idle gets nearly all. Elsewhere the kernel does not
spread over such sockets, and the workers share one. As the parent keeps a dead worker's sockets open, whoever connects
meanwhile waits for the next one and is not refused.

It knows neither Trio nor what a worker does: it is given that as a function.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from tunnel.contract import PREFIX, SettingError
from tunnel.daemon.config import Family, TunnelConfig
from tunnel.daemon.ports import PortInUse, Ports
from tunnel.logs import JsonLog
from tunnel.net.sockets import listen

_BACKLOG: Final = 4096
_LAST_PORT: Final = 65535
_SPREADS: Final = sys.platform == "linux"
_STABLE_SECONDS: Final = 10.0
"""A worker that lived this long is started again at once; before it, after a pause that doubles."""
_PAUSE: Final = (0.5, 10.0)

DRAIN: Final = b"T"
"""Order to a worker: end in order, as SIGTERM."""
INTERRUPT: Final = b"I"
"""Order to a worker: end soon, as SIGINT. An order after the first cuts the grace short."""

Serve = Callable[[TunnelConfig, Ports, int], int]
"""(config, ports, descriptor from which orders are read; its end: the parent is gone) → exit status."""


def config_of(config: TunnelConfig, worker: int) -> TunnelConfig:
    """The settings of one worker: a node id of its own, the internal port and the node's URL moved by its number."""
    moved = replace(config, node=str(uuid.uuid4()), internal_port=config.internal_port + worker)
    if not config.node_url or not worker:
        return moved
    parts = urlsplit(config.node_url)
    port = (parts.port or (443 if parts.scheme == "https" else 80)) + worker
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return replace(moved, node_url=parts._replace(netloc=f"{host}:{port}").geturl())


def family_of(config: TunnelConfig, workers: int) -> Family:
    """What all workers know of each other; each has its own number in it."""
    each = (config_of(config, number) for number in range(workers))
    return Family(uuid.uuid4().hex, tuple(one.url(one.internal_port) for one in each), 0)


def bind_all(config: TunnelConfig, workers: int) -> list[Ports]:
    """The listening sockets of all workers. Raises PortInUse or SettingError with one clear line."""
    if config.internal_port + workers - 1 > _LAST_PORT:
        raise SettingError(
            f"{PREFIX}TUNNEL_WORKERS: {workers} internal ports from {config.internal_port} on do not fit"
        )
    ports: list[Ports] = []
    public = _listen(config.public_host, config.public_port, "TUNNEL_PORT")
    try:
        # The first was bound alone: with SO_REUSEPORT at once, a daemon that runs already would silently be joined.
        if _SPREADS:
            public.close()
            public = _listen_shared(config.public_host, config.public_port)
        for worker in range(workers):
            internal = _listen(config.internal_host, config.internal_port + worker, "PROXY_INTERNAL_PORT")
            ports.append(Ports(public, internal))
            if worker < workers - 1:
                public = _listen_shared(config.public_host, config.public_port) if _SPREADS else public
    except (OSError, SettingError):
        public.close()
        for each in ports:
            each.close()
        raise
    return ports


def _listen(host: str, port: int, setting: str) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise PortInUse(f"cannot listen on {host}:{port} ({PREFIX}{setting}): {error.strerror or error}") from error


def _listen_shared(host: str, port: int) -> socket.socket:
    """One of several sockets that listen on the same port."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise PortInUse(f"cannot listen on {host}:{port} ({PREFIX}TUNNEL_PORT): {error.strerror or error}") from error
    return sock


@dataclass(slots=True)
class _Worker:
    number: int
    ports: Ports
    pid: int = 0  # 0: it does not run
    orders: int = -1  # the parent's end of its pipe
    started: float = 0.0
    pause: float = 0.0  # before its next start
    due: float = field(default=0.0)  # monotonic; when it is started again

    @property
    def running(self) -> bool:
        return self.pid != 0


class Prefork:
    """The parent. `run` returns when all workers have ended after a signal."""

    def __init__(self, config: TunnelConfig, ports: list[Ports], log: JsonLog, serve: Serve) -> None:
        self._config = config
        self._log = log
        self._serve = serve
        self._workers = [_Worker(number, each) for number, each in enumerate(ports)]
        self._family = family_of(config, len(ports))
        self._ending = False

    def run(self) -> int:
        """Start the workers, keep them running, obey SIGTERM and SIGINT. 0 when all ended in order, else 1."""
        with _signals() as wake:
            for worker in self._workers:
                self._start(worker)
            worst = 0
            while any(worker.running for worker in self._workers) or not self._ending:
                for number in _received(wake, self._patience()):
                    if number in (signal.SIGTERM, signal.SIGINT):
                        self._order(number)
                for worker, status in self._ended():
                    if self._ending:
                        worst = max(worst, int(status != 0))
                    else:
                        self._plan(worker, status)
                self._start_due()
            return worst

    def _patience(self) -> float | None:
        """Seconds until a worker is due, None if nobody is."""
        waiting = [worker.due for worker in self._workers if not worker.running]
        return max(0.0, min(waiting) - time.monotonic()) if waiting and not self._ending else None

    def _order(self, number: int) -> None:
        self._say("signal", name=signal.Signals(number).name)
        self._ending = True
        for worker in self._workers:
            if worker.running:
                try:
                    os.write(worker.orders, DRAIN if number == signal.SIGTERM else INTERRUPT)
                except (BrokenPipeError, BlockingIOError):
                    pass  # it has just ended, or has more orders before it than it will ever read

    def _ended(self) -> Iterator[tuple[_Worker, int]]:
        """Workers that have ended, with their exit status (negative: the signal)."""
        for worker in self._workers:
            if worker.running:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    os.close(worker.orders)
                    worker.pid = 0
                    yield worker, os.waitstatus_to_exitcode(status)

    def _plan(self, worker: _Worker, status: int) -> None:
        now = time.monotonic()
        stable = now - worker.started >= _STABLE_SECONDS or not worker.pause
        worker.pause = _PAUSE[0] if stable else min(worker.pause * 2, _PAUSE[1])
        worker.due = now if stable else now + worker.pause
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._say("worker_ended", "warning", worker=worker.number, how=how, again_in=round(worker.due - now, 1))

    def _start_due(self) -> None:
        if not self._ending:
            for worker in self._workers:
                if not worker.running and worker.due <= time.monotonic():
                    self._start(worker)

    def _start(self, worker: _Worker) -> None:
        orders, worker.orders = os.pipe()
        os.set_blocking(worker.orders, False)
        worker.started = time.monotonic()
        self._log.flush()
        pid = os.fork()
        if pid == 0:
            self._become(worker, orders)
        os.close(orders)
        worker.pid = pid
        self._say("worker_started", worker=worker.number, worker_pid=pid)

    def _become(self, worker: _Worker, orders: int) -> None:
        """The child's part: it never returns."""
        status = 1
        try:
            # A signal to the whole group (Ctrl-C, a service manager) reaches us as the parent's order as well, which
            # also comes before the worker obeys signals itself.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            for other in self._workers:
                if other.orders >= 0 and (other is worker or other.running):
                    os.close(other.orders)  # else the parent's end would not be the last, and its death go unseen
                if other is not worker:
                    other.ports.internal.close()
                    if other.ports.public is not worker.ports.public:
                        other.ports.public.close()
            if _SPREADS:
                worker.ports.public.listen(_BACKLOG)  # the one before it has stopped listening when it was drained
            family = replace(self._family, number=worker.number)
            config = replace(config_of(self._config, worker.number), family=family)
            status = self._serve(config, worker.ports, orders)
        except BaseException:  # noqa: BLE001 - the child must not go on with the parent's work, whatever happened
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _say(self, event: str, level: str = "info", **facts: object) -> None:
        (self._log.warning if level == "warning" else self._log.info)(event, **facts)
        self._log.flush()


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Within it, SIGTERM, SIGINT and SIGCHLD do nothing but to be readable, one byte each, from what is yielded."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _received(wake: socket.socket, seconds: float | None) -> bytes:
    """The numbers of the signals that came, as soon as there are any or the time is up."""
    ready, _, _ = select.select([wake], [], [], seconds)
    return wake.recv(4096) if ready else b""
