"""What the API's worker keeps straight when its own parts fail, without processes."""

from __future__ import annotations

import errno
import logging
import queue
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from gunicorn.config import Config

from cloud.server.board import Board, Place
from cloud.server.connection import Connection
from cloud.server.stopping import StoppingWorker
from cloud.server.threads import Crew
from cloud.server.waiting import Waiting
from cloud.server.worker import ApiWorker

SECONDS = 30.0


@pytest.fixture
def worker() -> Iterator[Any]:
    """A worker that was not started, with one listener."""
    made: Any = object.__new__(ApiWorker)
    made.cfg = Config()
    made.alive = True
    made.nr_conns = 0
    made.worker_connections = 2
    made._lock = threading.Lock()
    made._accepting, made._accept_again = False, 0.0
    made._heads, made._bodies, made._idle, made._lingering = Waiting(), Waiting(), Waiting(), Waiting()
    made.poller = selectors.DefaultSelector()
    made.listener = socket.create_server(("127.0.0.1", 0))
    made.listener.setblocking(False)
    with made.poller, made.listener, ExitStack() as stack:
        made.call = lambda: stack.enter_context(socket.create_connection(made.listener.getsockname(), SECONDS))
        yield made
        for key in list(made.poller.get_map().values()):
            key.fileobj.close()


def kept(worker: Any) -> tuple[socket.socket, Connection]:
    """(the client's end, a connection of the worker's between two requests)."""
    client = worker.call()
    worker.accept(worker.listener)
    ((_, key),) = list(worker.poller.get_map().items())
    conn = key.data.args[0]
    worker._end_wait(conn)
    worker._wait(conn, worker._idle, SECONDS)
    return client, conn


def beside_another(worker: Any) -> Place:
    """The other worker's place; both are heard of for the whole test."""
    board, later = Board(2), time.monotonic() + 1000
    worker.place, other = board.place(later), board.place(later)
    assert other is not None
    return other


def test_the_threads_end_with_a_worker_whose_loop_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process would wait for them for ever, and the master for the process."""
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    before = set(threading.enumerate())
    failed: Any = object.__new__(ApiWorker)
    failed.tpool = Crew(2, done.put)
    try:
        failed.tpool.give("a request")
        mine = set(threading.enumerate()) - before
        assert done.get(timeout=SECONDS) == "a request"

        def run(_worker: Any) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(StoppingWorker, "run", run)
        with pytest.raises(OSError, match="Too many"):
            failed.run()
        for thread in mine:
            thread.join(SECONDS)
            assert not thread.is_alive()
    finally:
        failed.tpool.shutdown()


def test_what_gave_way_to_a_newcomer_is_counted_once(worker: Any) -> None:
    """The poller tells of both at once: that somebody calls, and that the oldest has a request."""
    client, conn = kept(worker)
    client.sendall(b"GET / HTTP/1.1\r\n")
    (event,) = worker.poller.select(SECONDS)
    worker.call()
    worker.accept(worker.listener)  # both places are taken now
    assert conn.waits is None
    assert worker.nr_conns == 1
    event[0].data(event[0].fileobj)
    assert worker.nr_conns == 1


def test_what_cannot_be_watched_waits_nowhere(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _client, conn = kept(worker)
    worker._end_wait(conn)

    def register(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker.poller, "register", register)
    worker.finish_request(conn, None)
    assert (conn.waits, len(worker._idle), len(worker._lingering), worker.nr_conns) == (None, 0, 0, 0)
    assert conn.sock.fileno() == -1


class Full:
    """A listener, when the process has no descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self.fileno = listener.fileno
        self.setblocking = listener.setblocking
        self.asked = 0

    def accept(self) -> Any:
        self.asked += 1
        raise OSError(errno.EMFILE, "Too many open files")


def test_out_of_descriptors_it_serves_those_it_has_and_asks_again(
    worker: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes; requests under way neither end with it nor wait for it."""
    client, conn = kept(worker)
    full = Full(worker.listener)
    worker.log = logging.getLogger("test.gunicorn")
    worker.sockets = [full]
    other = beside_another(worker)
    worker.place.tell(worker.nr_conns)
    assert other.least(time.monotonic()) == 1
    worker.set_accept_enabled(True)
    worker.call()
    worker.wait_for_and_dispatch_events(SECONDS)
    assert "Too many open files" in caplog.text
    assert other.least(time.monotonic()) is None, "it takes none, so nobody leaves one to it"
    assert (full.asked, worker.nr_conns) == (1, 1)

    worker.set_accept_enabled(True)  # as the loop does in each turn
    given: list[Connection] = []
    monkeypatch.setattr(worker, "enqueue_req", given.append)
    client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    deadline = time.monotonic() + SECONDS
    while not given and time.monotonic() < deadline:
        worker.wait_for_and_dispatch_events(SECONDS)
    assert (given, full.asked) == ([conn], 1)

    worker.sockets = [worker.listener]
    while worker.nr_conns < 2 and time.monotonic() < deadline:
        worker.set_accept_enabled(True)
        worker.wait_for_and_dispatch_events(SECONDS)
    assert worker.nr_conns == 2
    assert other.least(time.monotonic()) == 2
    conn.close()


def test_who_left_a_connection_to_another_worker_knows_when_it_is_gone(worker: Any) -> None:
    """And only then has patience anew."""
    beside_another(worker).tell(0)
    worker.worker_connections, worker.nr_conns = 9, 1
    worker.sockets = [worker.listener]
    deadline = time.monotonic() + SECONDS

    def turn() -> None:
        assert time.monotonic() < deadline
        worker.set_accept_enabled(True)
        worker.wait_for_and_dispatch_events(SECONDS)

    worker.call()
    turn()
    assert worker.place.left
    assert worker.nr_conns == 1
    worker.listener.accept()[0].close()  # the other one took it
    while worker.place.left:  # without anything that happens
        turn()
    worker.call()
    turn()
    assert worker.place.left, "this one is left as well"
    assert worker.nr_conns == 1
    while worker.nr_conns == 1:  # until it has waited long enough
        turn()
