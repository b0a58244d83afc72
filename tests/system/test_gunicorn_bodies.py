"""Bodies of requests to the API's worker: how they are read, how long they are waited for, what is left of them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.gunicorn_worker_kit import HOST, THREADS, Server, check_refusal, read_all, read_answer, served, talk
from tests.system.stack import eventually

pytestmark = pytest.mark.system
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("gunicorn")) as running:
        yield running


def test_continue_is_said_when_the_body_is_read(server: Server) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with server.connect() as sock:
        sock.sendall(head % b"/read")
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hi")
        assert read_answer(sock)[2] == b"hi"
        sock.sendall(head % b"/")  # a view that wants no body: no 100, and the connection ends
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
    assert b"100 Continue" not in answer


def test_an_answer_before_a_large_body_ends_the_connection(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")


@pytest.mark.parametrize("body", [b"zz\r\nx\r\n", b"2\r\nhix\r\n0\r\n\r\n", b"1\nx\n0\n\n" + b" " * 9000, b"-1\r\n"])
def test_a_bad_chunk_is_400_whatever_the_app_makes_of_it(server: Server, body: bytes) -> None:
    raw = talk(server, b"POST /read HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    check_refusal(raw, 400, "BAD_REQUEST")


def test_a_body_cut_short_is_not_taken_for_whole(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nhello")
        sock.shutdown(socket.SHUT_WR)
        check_refusal(read_all(sock), 400, "BAD_REQUEST")


def test_a_body_that_comes_too_slowly_is_408(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /read HTTP/1.1\r\nX-Request-ID: late\r\n" + HOST + b"Content-Length: 10\r\n\r\nhello")
        assert check_refusal(read_all(sock), 408, "REQUEST_TIMEOUT")[b"x-request-id"] == b"late"
    assert not [line for line in server.lines() if line.get("request_id") == "late" and line["level"] == "error"]


def on_time(attempt: Callable[[], None]) -> None:
    """What the server allows a second for, within a test whose own process may stand still as long: in three tries."""
    for _ in range(2):
        with contextlib.suppress(AssertionError, OSError):
            return attempt()
    return attempt()


def said_to(sock: socket.socket, piece: bytes, times: int, seconds: float) -> bytes:
    """What is answered until the end while a piece is sent so many times, so many seconds apart; b"" if nothing is."""
    sock.settimeout(seconds)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(times):
            sock.sendall(piece)
            with contextlib.suppress(TimeoutError):
                data = sock.recv(65536)
                sock.settimeout(10)
                return data + read_all(sock)
    return b""


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", CHUNKED + b"1000\r\n", CHUNKED + b"1;"])
def test_a_body_that_trickles_is_late_as_well(server: Server, framing: bytes) -> None:
    """Each byte comes well within the body's time, which is one second, so that they all are one wait."""

    def attempt() -> None:
        with server.connect() as sock:
            sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + framing)
            check_refusal(said_to(sock, b"x", 100, 0.2), 408, "REQUEST_TIMEOUT")

    on_time(attempt)


def test_a_body_that_nobody_reads_may_not_trickle_on_after_the_answer(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\n" + HOST + CHUNKED)
        assert read_answer(sock)[0] == b"HTTP/1.1 200 OK"
        sock.settimeout(0.5)
        for _ in range(40):
            try:
                sock.sendall(b"1\r\nx\r\n")
                assert sock.recv(100) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            return
        raise AssertionError("a thread is held as long as the client likes")


def test_only_an_upload_may_take_as_long_as_it_is_large(server: Server) -> None:
    """Both come evenly, well above the least rate, and for longer than a body's time of one second."""
    head = b"PUT %b HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" + b"x" * 5000

    def accepted() -> None:
        with server.connect() as sock:
            sock.sendall(head % (b"/storage/read", 105_000))
            for _ in range(20):
                time.sleep(0.1)
                sock.sendall(b"x" * 5000)
            assert len(read_answer(sock)[2]) == 105_000

    def refused() -> None:
        with server.connect() as sock:
            sock.sendall(head % (b"/read", 1_000_000))  # more than is sent before it is late
            check_refusal(said_to(sock, b"x" * 5000, 100, 0.1), 408, "REQUEST_TIMEOUT")

    on_time(accepted)
    on_time(refused)


@pytest.mark.parametrize("body", [b"Content-Length: 70000\r\n\r\nhello", CHUNKED + b"ff\r\n0\r\n\r\n"])
def test_slow_bodies_hold_a_share_of_the_threads_only(server: Server, body: bytes) -> None:
    """Also one whose bytes look like the last chunk."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(2 * THREADS)]
        for sock in slow:
            sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + body)
        answers = [read_all(sock) for sock in slow]
    statuses = sorted(answer.split(b" ", 2)[1] for answer in answers)
    assert set(statuses) == {b"408", b"503"}
    told = next(answer for answer in answers if answer.startswith(b"HTTP/1.1 503"))
    assert check_refusal(told, 503, "OVERLOADED")[b"retry-after"] == b"1"

    def served_again() -> bool:
        with server.connect() as sock:
            sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + CHUNKED + b"2\r\nsl\r\n")
            time.sleep(0.1)  # in a packet of its own
            sock.sendall(b"2\r\now\r\n0\r\n\r\n")
            return read_answer(sock)[2] == b"slow"

    eventually(served_again, 10, "the slots come back")


def test_one_stranger_who_trickles_takes_neither_uploads_nor_threads_from_others(tmp_path: Path) -> None:
    """60 connections a minute with bodies that no gate gathers were enough to refuse every upload of a model."""
    with served(tmp_path, VISIONA_API_THREADS="32") as server, contextlib.ExitStack() as stack:

        def call(line: bytes, *framing: bytes, address: str) -> socket.socket:
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), 10, source_address=(address, 0))
            )
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it has said all
                sock.sendall(line + b" HTTP/1.1\r\n" + HOST + b"".join(framing))
            return sock

        stranger = [call(b"POST /read", CHUNKED + b"5\r\n{", address="127.0.0.9") for _ in range(60)]
        for sock in stranger[40:]:  # told so, or let go: whoever is over the stranger's share is not waited for
            with contextlib.suppress(ConnectionResetError):
                read_all(sock)
        stranger += [call(b"POST /read", CHUNKED + b"5\r\n{", address="127.0.0.9") for _ in range(20)]
        for line in (b"PUT /storage/read", b"POST /read"):

            def attempt(line: bytes = line) -> None:
                sock = call(line, b"Content-Length: 70000\r\n\r\n", b"x" * 60_000, address="127.0.0.1")
                time.sleep(0.05)  # in a packet of its own
                sock.sendall(b"x" * 10_000)
                assert (line, len(read_answer(sock)[2])) == (line, 70_000)

            on_time(attempt)


@contextlib.contextmanager
def trickling(server: Server, callers: int) -> Iterator[None]:
    """So many callers whose bodies come at a few bytes a second and never whole; one that is refused comes again."""
    stop = threading.Event()

    def dial() -> socket.socket:
        sock = server.connect()
        sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + b"Content-Length: 600\r\n\r\nx")
        return sock

    def trickle(slow: list[socket.socket]) -> None:
        while not stop.wait(0.3):
            for sock in select.select(slow, [], [], 0)[0]:
                slow.remove(sock)
                sock.close()
                slow.append(dial())
            for sock in slow:
                with contextlib.suppress(OSError):
                    sock.send(b"x")
        for sock in slow:
            sock.close()

    thread = threading.Thread(target=trickle, args=([dial() for _ in range(callers)],))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.gameday
@pytest.mark.parametrize("callers", [30, 60])
def test_small_bodies_that_trickle_take_nothing_from_others(server: Server, callers: int) -> None:
    """Of the 40 places that the settings of this test have; over them the slowest goes."""
    with trickling(server, callers):
        for _ in range(5):
            on_time(lambda: log_in(server))


def log_in(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n")
        time.sleep(0.05)
        sock.sendall(b"login")  # in a packet of its own
        line, _, body = read_answer(sock)
        assert (line, body) == (b"HTTP/1.1 200 OK", b"login")


def test_a_small_body_in_pieces_and_what_follows_it(server: Server) -> None:
    """On one connection, the next request's beginning in the same packet as a body's end."""
    with server.connect() as sock:
        for _ in range(2):
            for piece in (b"POST /read HTTP/1.1\r\nHo", b"st: a\r\nContent-length:  9 \r\n\r\nab", b"cd", b"efg"):
                sock.sendall(piece)
                time.sleep(0.01)
            sock.sendall(b"hiPOST /read HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n")
            assert read_answer(sock)[2] == b"abcdefghi"
            sock.sendall(b"end")
            assert read_answer(sock)[2] == b"end"


def test_a_small_body_that_comes_steadily_may_take_its_time(server: Server) -> None:
    """Above the least rate, and for longer than a body's time of one second; nobody's thread waits for it."""

    def attempt() -> None:
        with server.connect() as sock:
            sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + b"Content-Length: 6000\r\n\r\n")
            for _ in range(20):
                time.sleep(0.1)
                sock.sendall(b"x" * 300)
            assert len(read_answer(sock)[2]) == 6000

    on_time(attempt)
