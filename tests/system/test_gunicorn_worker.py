"""The API's worker class in real gunicorn processes, spoken to over raw sockets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.gunicorn_worker_kit import (
    COMMAND,
    HOST,
    ROOT,
    THREADS,
    Server,
    check_refusal,
    get,
    read_all,
    read_answer,
    read_until_reset,
    served,
    talk,
)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("gunicorn")) as running:
        yield running


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00", 400, "BAD_REQUEST"),
    "no version": (b"GET /\r\n\r\n", 400, "BAD_REQUEST"),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "BAD_REQUEST"),
    "lower-case method": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "empty lines": (b"\r\n" * 3 + b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400, "BAD_REQUEST"),
    "bare LF in a field": (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, "BAD_REQUEST"),
    "folded": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", 400, "BAD_REQUEST"),
    "NUL": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n", 400, "BAD_REQUEST"),
    "bare CR": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n", 400, "BAD_REQUEST"),
    "space before the colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n", 400, "BAD_REQUEST"),
    "no Host": (b"GET / HTTP/1.1\r\nX: a\r\n\r\n", 400, "BAD_REQUEST"),
    "two Hosts": (b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400, "BAD_REQUEST"),
    "absolute form": (b"GET http://other/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "authority form": (b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "fragment": (b"GET /#a HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "no UTF-8": (b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "BAD_REQUEST"),
    "absolute form of another port": (b"GET http://a:81/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "absolute form with a user": (b"GET http://b@a/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "absolute form, two Hosts": (b"GET http://a/ HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400, "BAD_REQUEST"),
    "absolute form, fragment": (b"GET http://a/#b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "BAD_REQUEST"),
    "two lengths": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        400,
        "BAD_REQUEST",
    ),
    "bad length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\nx", 400, "BAD_REQUEST"),
    "length and chunks": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "BAD_REQUEST",
    ),
    "unknown coding": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: nonsense\r\n\r\n", 400, "BAD_REQUEST"),
    "gzip, chunked": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400, "BAD_REQUEST"),
    "identity": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n", 400, "BAD_REQUEST"),
    "chunks in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "BAD_REQUEST"),
    "unknown expectation": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Expect: cake\r\nContent-Length: 1\r\n\r\nx",
        400,
        "BAD_REQUEST",
    ),
    "long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "URI_TOO_LONG"),
    "endless target": (b"GET /" + b"a" * 40_000, 414, "URI_TOO_LONG"),
    "large head": (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 33_000 + b"\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
    "endless head": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 6000, 431, "HEADERS_TOO_LARGE"),
    "101 fields": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 100 + b"\r\n", 431, "HEADERS_TOO_LARGE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_before_the_view_is_the_envelope(server: Server, name: str) -> None:
    raw, status, code = REFUSED[name]
    fields = check_refusal(talk(server, raw), status, code)
    assert re.fullmatch(rb"req_[0-9a-f]{20}", fields[b"x-request-id"])


@pytest.mark.parametrize("name", ["bare LF", "folded", "unknown coding", "no Host"])
def test_a_refusal_of_a_head_that_came_byte_by_byte(server: Server, name: str) -> None:
    raw, status, code = REFUSED[name]
    check_refusal(talk(server, raw, byte_by_byte=True), status, code)


def test_a_refusal_keeps_the_inbound_request_id(server: Server) -> None:
    raw = b"GET / HTTP/1.1\r\nX-Request-ID: mine.1\r\nTransfer-Encoding: x\r\n" + HOST + b"\r\n"
    assert check_refusal(talk(server, raw), 400, "BAD_REQUEST")[b"x-request-id"] == b"mine.1"
    ours = [line for line in server.lines() if line.get("request_id") == "mine.1"]
    assert [(line["event"], line["code"], line["status"]) for line in ours] == [("request refused", "BAD_REQUEST", 400)]


def test_the_largest_head_passes(server: Server) -> None:
    assert get(server, "/" + "a" * 8191)[0] == b"HTTP/1.1 200 OK"
    assert get(server, "/", "X: " + "a" * 20_000)[0] == b"HTTP/1.1 200 OK"
    assert get(server, "/", *["X: a"] * 99)[0] == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_the_view_gets_the_raw_head(server: Server, byte_by_byte: bool) -> None:
    raw = (
        b"\r\nGET /facts?a=%2F&device_id=x HTTP/1.1\r\nHost: a\r\nX_Under: 1\r\nX-Twice: 1\r\nx-twice: 2\r\n"
        b"X-Forwarded-Proto: https\r\nSCRIPT_NAME: /x\r\nX-Bytes: \xe4\r\nX-Request-ID: r1\r\nConnection: close\r\n\r\n"
    )
    facts = json.loads(talk(server, raw, byte_by_byte=byte_by_byte).partition(b"\r\n\r\n")[2])
    assert facts["target"] == "/facts?a=%2F&device_id=x"
    assert facts["headers"] == [
        ["Host", "a"],
        ["X_Under", "1"],
        ["X-Twice", "1"],
        ["x-twice", "2"],
        ["X-Forwarded-Proto", "https"],
        ["SCRIPT_NAME", "/x"],
        ["X-Bytes", "ä"],
        ["X-Request-ID", "r1"],
        ["Connection", "close"],
    ]
    assert facts["request_id"] == "r1"
    assert facts["scheme"] == "http"
    assert "HTTP_X_UNDER" not in facts["keys"]


def test_the_answer_is_the_apps_own(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /own HTTP/1.1\r\n" + HOST + b"\r\n")
        raw = sock.recv(65536)
    head = raw.partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 299 All is well\r\nConnection: keep-alive\r\n")
    assert [line for line in head.split(b"\r\n") if line.lower().startswith((b"server", b"date", b"x-a"))] == [
        b"Server: box",
        b"Date: its own",
        b"X-A: 1",
        b"X-A: 2",
    ]


# --- connections ------------------------------------------------------------------------------------------------------


def test_keep_alive_and_pipelining(server: Server) -> None:
    with server.connect() as sock:
        for _ in range(3):
            sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nhi")
            assert read_answer(sock)[2] == b"hi"
        one = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
        sock.sendall(one + one + b"GET / HTTP/1.1\r\n" + HOST)
        read_answer(sock)
        sock.sendall(b"Connection: x, close\r\n\r\n")
        rest = read_all(sock)
    assert rest.count(b"HTTP/1.1 200 OK") in (1, 2)  # the second may have come with the first
    assert rest.count(b"Connection: close") == 1
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"Connection: close" in read_all(sock)


def test_an_unread_body_is_out_of_the_way(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello")
        assert read_answer(sock)[2] == b"ok"
        sock.sendall(b"POST /read HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert read_answer(sock)[2] == b"abc"


def test_slow_heads_hold_no_thread(server: Server) -> None:
    for _ in range(10):  # a busy machine may take as long for one answer as it waits for a head
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(server.connect()) for _ in range(5 * THREADS)]
            for sock in slow:
                sock.sendall(b"GET / HTTP/1.1\r\nX-Request-ID: slow\r\nHost:")
            assert get(server, "/")[2] == b"ok"
            answered_first = not select.select(slow, [], [], 0)[0]
            refusals = [check_refusal(read_all(sock), 408, "REQUEST_TIMEOUT") for sock in (slow[0], slow[-1])]
            assert [fields[b"x-request-id"] for fields in refusals] == [b"slow", b"slow"]
            if answered_first:
                return
    pytest.fail("nobody is answered until slow heads were given up")


def test_a_head_that_trickles_is_late_as_well(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for _ in range(40):
                sock.sendall(b"X: a\r\n")
                sock.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    data = sock.recv(65536)
                    break
        check_refusal(data, 408, "REQUEST_TIMEOUT")


def test_a_connection_that_says_nothing_is_closed_without_a_word(server: Server) -> None:
    with server.connect() as sock:
        assert read_all(sock) == b""


def test_idle_connections_give_way_to_new_ones(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(60):  # of the 40 places that the settings of this test have
            sock = stack.enter_context(server.connect())
            sock.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            assert read_answer(sock)[2] == b"ok"


def test_a_client_that_leaves_within_the_answer(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /endless HTTP/1.1\r\nX-Request-ID: left\r\n" + HOST + b"\r\n")
        sock.recv(1000)
    deadline = time.monotonic() + 5
    while not [
        line for line in server.lines() if (line["event"], line.get("request_id")) == ("the client left", "left")
    ]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not [line for line in server.lines() if line.get("request_id") == "left" and line["level"] == "error"]


def test_a_refused_head_request_gets_no_body(server: Server) -> None:
    raw = talk(server, b"HEAD / HTTP/1.1\r\nTransfer-Encoding: x\r\n" + HOST + b"\r\n")
    assert raw.startswith(b"HTTP/1.1 400 ")
    assert raw.endswith(b"\r\n\r\n")


# --- failures, relays -------------------------------------------------------------------------------------------------


def test_a_crash_is_told_in_the_envelope(server: Server) -> None:
    raw = talk(server, b"GET /crash HTTP/1.1\r\n" + HOST + b"X-Request-ID: crash-1\r\n\r\n")
    assert check_refusal(raw, 500, "INTERNAL_ERROR")[b"x-request-id"] == b"crash-1"
    (line,) = [line for line in server.lines() if line.get("request_id") == "crash-1" and "exception" in line]
    assert line["level"] == "error"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_an_answer_that_dies_is_reset(server: Server, version: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /cut HTTP/" + version + b"\r\nHost: a\r\n\r\n")
        data = read_until_reset(sock)
    assert not data.endswith(b"0\r\n\r\n")
    assert b"500" not in data


def test_nothing_is_written_into_a_socket_that_was_taken_over(server: Server) -> None:
    raw = talk(server, b"GET /hijack HTTP/1.1\r\n" + HOST + b"\r\n")
    assert raw.endswith(b"\r\n\r\nraw bytes")
    assert b"never seen" not in raw


def test_a_borrowed_connection_comes_back(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /borrow HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nhi")
        assert read_answer(sock)[2] == b"got hi"
        sock.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert read_answer(sock)[2] == b"ok"


@pytest.mark.parametrize("mode", [b"crash", b"caught"])
def test_a_borrower_that_fails_is_cut(server: Server, mode: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /borrow?" + mode + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        data = read_until_reset(sock)
    assert b"500" not in data
    assert b"oops" not in data


# --- the process ------------------------------------------------------------------------------------------------------


def test_the_log_is_json_without_queries(server: Server) -> None:
    get(server, "/facts?ticket=vAt_secret", "X-Request-ID: log-1")
    talk(server, b"GET /?ticket=vAt_secret HTTP/7\r\n" + HOST + b"\r\n")
    deadline = time.monotonic() + 5
    while not (seen := [line for line in server.lines() if line.get("request_id") == "log-1"]):
        assert time.monotonic() < deadline
    assert {"event": "access", "method": "GET", "path": "/facts", "status": 200}.items() <= seen[0].items()
    assert b"ticket" not in server.log.read_bytes().replace(b"a crash with ?ticket=secret", b"")


def test_no_control_socket(server: Server) -> None:
    assert not (server.log.parent / ".gunicorn").exists()


def test_a_stop_lets_requests_finish(tmp_path: Path) -> None:
    running = Server(tmp_path / "log.jsonl")
    try:
        running.wait_ready()
        answers: list[bytes] = []
        with running.connect() as idle, running.connect() as begun:
            idle.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            read_answer(idle)
            thread = threading.Thread(
                target=lambda: answers.append(talk(running, b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"))
            )
            thread.start()
            begun.sendall(b"GET / HTTP/1.1\r\n")
            time.sleep(0.3)
            running.process.send_signal(signal.SIGTERM)
            begun.sendall(HOST + b"\r\n")
            assert read_all(begun).startswith(b"HTTP/1.1 200 OK")
            assert read_all(idle) == b""
            thread.join(10)
        assert answers[0].startswith(b"HTTP/1.1 200 OK\r\nConnection: close")
        assert running.process.wait(10) == 0
    finally:
        running.stop()


def test_a_bad_setting_is_one_line(tmp_path: Path) -> None:
    environ = os.environ | {"VISIONA_API_THREADS": "none"}
    result = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env=environ,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert result.returncode != 0
    assert result.stderr.strip() == b"VISIONA_API_THREADS: 'none' is not a whole number"
