"""What the benchmarks of the wire count on: the slow line, the rogue's frames, orders and shares. Nothing is timed."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from benchmarks.effort import BRIEF, FULL, QUICK, Effort
from benchmarks.scenarios import distance, fragments, share
from benchmarks.wire.end import unsmoothed
from benchmarks.wire.link import Held, Line
from benchmarks.wire.parts import order, whole
from benchmarks.wire.rogue import chopped, ends, ids, message, messages, rapid_resets, short_lives
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind, RemoteProtocolError
from tunnel.protocol.session import Session
from tunnel.websocket.codec import WebSocketCodec

WINDOW = 256 * 1024


# --- the line ---


def test_a_long_line_delays_and_keeps_order() -> None:
    line = Line(delay=0.05)
    assert line.due(1_000_000, 1.0) == pytest.approx(1.05)
    assert line.due(1, 1.0) == pytest.approx(1.05)
    assert line.due(1, 1.2) == pytest.approx(1.25)


def test_a_narrow_line_lets_its_rate_through_and_a_burst() -> None:
    line = Line(rate=1000, burst=100)
    assert line.due(100, 5.0) == pytest.approx(5.0)
    assert line.due(1000, 5.0) == pytest.approx(6.0)
    assert line.due(500, 5.0) == pytest.approx(6.5)
    # It stood idle: no more than the burst is saved up.
    assert line.due(1100, 100.0) == pytest.approx(101.0)


def test_a_late_reader_does_not_slow_a_narrow_line() -> None:
    line, now, size = Line(rate=1000, burst=100), 0.0, 50
    for _ in range(200):
        now = line.due(size, now) + 0.01  # woken late each time, by less than the burst is worth
    assert 200 * size / now == pytest.approx(1000, rel=0.02)


async def test_what_a_line_holds_is_bounded(autojump_clock: MockClock) -> None:
    held, put = Held(100), 0

    async def fill() -> None:
        nonlocal put
        while True:
            await held.put(0.0, bytes(40))
            put += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert put == 2  # the third filled it, and waits
        _, data = await held.take()
        await trio.testing.wait_all_tasks_blocked()
        assert put == 2  # taken, but not yet handed on
        held.gone(len(data))
        await trio.testing.wait_all_tasks_blocked()
        assert put == 3
        nursery.cancel_scope.cancel()


# --- the rogue ---


def heard(session: Session, data: bytes, wire: WebSocketCodec) -> None:
    for payload in wire.receive(data):
        session.receive_data(bytes(payload), 1.0)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_message_is_one_that_a_server_takes(size: int) -> None:
    payload = bytes(range(256)) * 257
    taken = WebSocketCodec(client=False).receive(message(payload[:size]))
    assert b"".join(bytes(piece) for piece in taken) == payload[:size]


@pytest.mark.parametrize("accept", [False, True])
def test_a_flood_of_resets_ends_the_session(accept: bool) -> None:
    session = Session(Role.CLIENT, now=0.0, accept_streams=accept)
    with pytest.raises(RemoteProtocolError, match="too"):
        heard(session, messages(rapid_resets(2000)), WebSocketCodec(client=False))
    assert session.ending is not None
    assert session.ending.kind is EndKind.ABUSE


def test_short_lives_are_within_what_is_allowed() -> None:
    session = Session(Role.CLIENT, now=0.0, accept_streams=True)
    heard(session, messages(short_lives(200, b"hello")), WebSocketCodec(client=False))
    assert session.ending is None
    assert session.counters.frames_in == 600
    for _ in range(200):
        stream = session.accept()
        assert stream is not None
        assert session.read(stream) == b"hello"
        assert stream.read_eof
    assert session.accept() is None


@pytest.mark.parametrize(("total", "piece", "frames"), [(1000, 1, 1000), (1000, 300, 4), (900, 300, 3)])
def test_bulk_is_chopped_into_frames(total: int, piece: int, frames: int) -> None:
    session, streams = Session(Role.CLIENT, now=0.0, accept_streams=True), ids(3)
    heard(session, messages(chopped(streams, total, piece) + ends(streams), 13), WebSocketCodec(client=False))
    assert session.counters.frames_in == 3 * (frames + 2)  # each opened and ended, too
    for _ in streams:
        stream = session.accept()
        assert stream is not None
        assert len(session.read(stream)) == total


def test_a_byte_beyond_the_window_ends_the_session() -> None:
    session = Session(Role.CLIENT, now=0.0, accept_streams=True)
    heard(session, messages(chopped(ids(1), WINDOW, 4096)), WebSocketCodec(client=False))
    assert session.ending is None
    other = Session(Role.CLIENT, now=0.0, accept_streams=True)
    with pytest.raises(RemoteProtocolError, match="window"):
        heard(other, messages(chopped(ids(1), WINDOW + 1, 4096)), WebSocketCodec(client=False))


# --- orders and shares ---


def test_a_ping_is_found_in_what_it_moved() -> None:
    assert unsmoothed(None, 0.2) == 0.2
    assert unsmoothed(0.1, 0.1 * 0.75 + 0.5 * 0.25) == pytest.approx(0.5)


def test_a_window_lets_itself_through_once_a_round_trip() -> None:
    assert distance.allowed(WINDOW, 0.05) == pytest.approx(5.24, abs=0.01)


@pytest.mark.parametrize("effort", [QUICK, BRIEF, FULL])
@pytest.mark.parametrize("window", distance.WINDOWS.values())
@pytest.mark.parametrize("round_trip", [0.0, 0.05, 0.1])
def test_an_amount_is_whole_windows_and_bounded(effort: Effort, window: int, round_trip: float) -> None:
    size = distance.amount(effort, window, round_trip)
    assert size % window == 0
    assert size <= effort.wire
    assert size >= 4 * window
    if not round_trip:
        assert size == effort.wire


def test_only_what_is_shipped_grows() -> None:
    assert distance.settings(distance.GROWS) == {}
    assert distance.settings("4 MiB")["receive_window"] == 4 * distance.MIB


@pytest.mark.parametrize(
    ("direction", "result", "complete"),
    [
        ("down", {"bytes": 1000, "said": "", "fault": ""}, True),
        ("down", {"bytes": 1120, "said": "", "fault": ""}, True),  # with an HTTP head
        ("down", {"bytes": 999, "said": "", "fault": ""}, False),
        ("down", {"bytes": 1000, "said": "", "fault": "StreamReset"}, False),
        ("up", {"bytes": 4, "said": "1000", "fault": ""}, True),
        ("up", {"bytes": 90, "said": 'OK\r\n\r\n{"bytes":1000}\n', "fault": ""}, True),
        ("up", {"bytes": 90, "said": '{"bytes":100}\n', "fault": ""}, False),
        ("up", {"bytes": 0, "said": "", "fault": ""}, False),
    ],
)
def test_what_is_missing_is_seen(direction: str, result: dict[str, object], complete: bool) -> None:
    assert whole(direction, 1000, result) is complete


def test_jain_knows_even_from_uneven() -> None:
    assert share.jain([3.0] * 64) == pytest.approx(1.0)
    assert share.jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="nothing"):
        share.jain([0.0, 0.0])


def test_seconds_a_gib_are_told_by_the_mib() -> None:
    assert fragments.by_mib([{"agent_cpu_s_gib": 2.048}], "agent") == [{"ms_mib": 2.0}]


def test_an_order_says_how_much() -> None:
    assert order("down", 5) == {"ask": "down 5\n"}
    assert order("up", 5)["send"] == 5
    assert "GET /bytes/5 " in order("down", 5, go=True)["ask"]
    told = order("up", 5, go=True)
    assert "Content-Length: 5\r\n" in told["ask"]
    assert told["send"] == 5
