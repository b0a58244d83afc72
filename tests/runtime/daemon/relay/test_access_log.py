"""One line a request: when it is due, what it counts, and whose id it bears."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.runtime.daemon.daemonworld import World, echo, world
from tunnel.daemon.relay.access_log import AccessLog
from tunnel.mux.stream import Stream
from tunnel.net.sockets import ByteStream

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(request_id: str) -> bytes:
    return b"GET /a?token=secret HTTP/1.1\r\nHost: box\r\nX-Request-ID: %b\r\n\r\n" % request_id.encode()


async def box(stream: Stream) -> None:
    """Answers each request, which comes in one piece."""
    try:
        while await stream.receive_some():
            await stream.send_all(ANSWER)
        await stream.aclose()
    except trio.BrokenResourceError:
        stream.reset()


async def ask(raw: ByteStream, request_id: str) -> None:
    await raw.send_all(request(request_id))
    got = b""
    while len(got) < len(ANSWER):
        got += await raw.receive_some()


async def opened(w: World) -> ByteStream:
    agent, _ = await w.agent()
    await w.serve(agent, box)
    _, _, raw, _ = await w.forward(
        headers=[("X-Device-Id", "device-0"), ("X-Request-ID", "of-the-call")],
    )
    return raw


def ids(w: World) -> list[Any]:
    return [line["request_id"] for line in w.logged("forward")]


async def test_each_request_of_a_reused_stream_has_its_line() -> None:
    async with world() as w:
        raw = await opened(w)
        for number in range(3):
            await ask(raw, f"req-{number}")
        assert ids(w) == ["req-0", "req-1"], "that of the last is due when it has been quiet, or at the end"
        raw.send_eof()
        assert await raw.receive_some() == b""
        await w.until(lambda: len(ids(w)) == 3)
        lines = w.logged("forward")
        assert ids(w) == ["req-0", "req-1", "req-2"]
        assert [line["outcome"] for line in lines] == ["answered", "answered", "done"]
        assert {(line["bytes_up"], line["bytes_down"]) for line in lines} == {(len(request("req-0")), len(ANSWER))}
        assert {line["stream"] for line in lines} == {1}
        assert all(0 < line["seconds"] < 60 for line in lines)
        assert "secret" not in str(w.lines)


async def test_the_last_request_of_an_idle_stream_is_told_soon_and_once() -> None:
    async with world() as w:
        began = trio.current_time()
        raw = await opened(w)
        await ask(raw, "req-1")
        answered = trio.current_time() - began
        with trio.fail_after(10):
            await w.until(lambda: ids(w) == ["req-1"])
        assert w.logged("forward")[0]["outcome"] == "answered"
        assert w.logged("forward")[0]["seconds"] <= answered + 0.001, "it lasts until the answer, not until it is told"
        await trio.sleep(1.2)
        raw.send_eof()
        await raw.receive_some()
        await w.until(lambda: not len(w.daemon.parts.relay))
        assert ids(w) == ["req-1"]


async def test_the_calls_id_stands_for_a_first_request_without_one() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward(headers=[("X-Device-Id", "device-0"), ("X-Request-ID", "of-the-call")])
        await raw.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await raw.receive_some()
        await raw.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await raw.receive_some()
        raw.send_eof()
        await w.until(lambda: len(ids(w)) == 2)
        assert ids(w) == ["of-the-call", None]


# --- the ledger by itself ---------------------------------------------------------------------------------------------
HEAD = request("one")


def test_a_head_in_pieces_belongs_to_its_own_request() -> None:
    ledger = AccessLog("call", 0.0)
    assert ledger.sent(HEAD, 0, 0, 1.0) is None
    ledger.answered_at = 2.0
    ledger.turned()
    assert ledger.sent(HEAD[:10], 100, 50, 3.0) is None
    line = ledger.sent(HEAD[10:].replace(b"one", b"two"), 110, 50, 9.0)
    assert line == {"request_id": "one", "bytes_up": 100, "bytes_down": 50, "seconds": 2.0, "outcome": "answered"}
    ledger.answered_at = 10.0
    last = ledger.end(200, 80, 11.0, "done")
    assert last == {"request_id": "two", "bytes_up": 100, "bytes_down": 30, "seconds": 7.0, "outcome": "done"}


def test_quiet_before_an_answer_is_no_end() -> None:
    ledger = AccessLog("call", 0.0)
    ledger.sent(HEAD, 0, 0, 0.0)
    assert ledger.quiet(100, 0, 5.0) is None
    ledger.turned()
    assert ledger.quiet(100, 20, 6.0) is not None
    assert ledger.quiet(100, 20, 7.0) is None


def test_a_request_that_moves_on_after_its_line_gets_another() -> None:
    ledger = AccessLog("call", 0.0)
    ledger.sent(HEAD, 0, 0, 0.0)
    ledger.turned()
    assert ledger.quiet(100, 20, 2.0) is not None
    line = ledger.end(100, 30, 5.0, "done")
    assert line is not None
    assert (line["again"], line["bytes_down"]) == (True, 30)


@pytest.mark.parametrize("outcome", ["agent_reset", "session_ended", "client_reset"])
def test_a_cut_is_told_even_after_the_line(outcome: str) -> None:
    """What was quiet may have been in the middle of its answer."""
    ledger = AccessLog("call", 0.0)
    ledger.sent(HEAD, 0, 0, 0.0)
    ledger.turned()
    ledger.quiet(100, 20, 2.0)
    line = ledger.end(100, 20, 5.0, outcome)
    assert line is not None
    assert (line["again"], line["outcome"], line["seconds"]) == (True, outcome, 5.0)


def test_what_is_no_request_is_one_line_of_the_whole_stream() -> None:
    ledger = AccessLog("call", 0.0)
    assert ledger.sent(b"\x00\x01", 0, 0, 0.0) is None
    ledger.turned()
    assert ledger.sent(b"\x00\x02", 2, 2, 1.0) is None
    line = ledger.end(4, 2, 3.0, "done")
    assert line is not None
    assert (line["request_id"], line["bytes_up"]) == ("call", 4)
