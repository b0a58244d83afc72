"""What time alone does: pings, liveness, close timeout. And what a repr shows."""

import pytest

from tests.protocol.lab import ACK, FIN, RST, SYN, Frame, Lab, data, ping, window
from tunnel.protocol.errors import EndKind, Fault


def test_ping_when_idle_and_death_when_silent() -> None:
    lab = Lab()
    assert lab.session.next_deadline() == lab.now + 15
    lab.tick(15)
    assert lab.sent() == [Frame(2, SYN, 0, 0)]
    lab.tick(15)
    assert lab.sent() == []  # one outstanding
    assert lab.session.next_deadline() == lab.now + 10
    lab.tick(10)
    assert lab.session.ending is not None
    assert lab.session.ending.kind is EndKind.LIVENESS
    assert lab.sent() == []


@pytest.mark.parametrize("delay", [0.001, 0.3])
def test_each_ping_comes_15_seconds_after_the_last_answer(delay: float) -> None:
    """However it is looked after: at the dates that it names, and at no more of them than two a ping."""
    lab, pings, looks = Lab(), list[float](), 0
    begun = lab.now
    while lab.now - begun < 80:
        lab.tick(max(lab.session.next_deadline() - lab.now, 0.01))
        looks += 1
        for frame in lab.sent():
            pings.append(lab.now - begun)
            lab.now += delay
            lab.feed(ping(frame.length, ACK))
    assert pings == pytest.approx([n * 15 + (n - 1) * delay for n in range(1, 7)], abs=0.02)
    assert looks <= 2 * len(pings) + 1


def test_a_ping_without_an_answer_is_not_looked_after_all_the_time() -> None:
    lab, looks = Lab(), 0
    while lab.session.ending is None:
        lab.tick(max(lab.session.next_deadline() - lab.now, 0.01))
        lab.sent()
        looks += 1
    assert looks == 3  # the ping, when the next would be due, the end


def test_any_byte_is_life_and_a_pong_measures() -> None:
    lab = Lab()
    lab.tick(15)
    lab.sent()
    lab.tick(14)
    lab.feed(ping(5))
    lab.sent()
    lab.tick(14)
    lab.now += 0.25
    lab.feed(ping(0, ACK))
    assert lab.session.rtt == pytest.approx(28.25)
    assert lab.session.ending is None
    assert lab.session.counters.glitches == 0


def test_a_ping_that_is_never_answered_is_given_up_while_other_bytes_come() -> None:
    lab = Lab()
    lab.tick(15)
    assert lab.sent() == [Frame(2, SYN, 0, 0)]
    for _ in range(4):
        lab.feed(ping(1))
        lab.sent()
        lab.tick(10)
    lab.tick(15)
    assert lab.sent() == [Frame(2, SYN, 0, 1)]


def test_a_busy_session_measures_now_and_then() -> None:
    lab = Lab()
    lab.open_inbound()
    for _ in range(30):
        lab.tick(1)
        lab.feed(data(1, b"x"))
    assert [frame.kind for frame in lab.sent()] == [2]


def test_a_half_closed_stream_without_progress_is_reset_after_300_seconds() -> None:
    lab = Lab()
    stream = lab.open_inbound()
    lab.session.half_close(stream)
    lab.sent()
    for n in range(30):
        lab.tick(10)
        lab.feed(ping(n), *([data(1, b"progress")] if n == 5 else []))
        lab.session.read(stream)
    assert stream.fault is None
    for n in range(6):
        lab.tick(10)
        lab.feed(ping(n))
    assert stream.fault is Fault.CLOSE_TIMEOUT
    assert Frame(1, RST, 1, 0) in lab.sent()


def test_half_closing_an_unaccepted_stream_accepts_it_first() -> None:
    lab = Lab()
    (stream,) = lab.feed(window(1, SYN))
    lab.session.half_close(stream)
    assert lab.sent() == [Frame(1, ACK, 1, 0), Frame(1, FIN, 1, 0)]
    assert lab.session.accept() is None


def test_reprs_tell_the_state() -> None:
    lab = Lab()
    stream = lab.open_inbound()
    assert "OPEN" in repr(stream)
    assert "streams=1" in repr(lab.session)
    lab.session.end("done")
    assert "SESSION_ENDED" in repr(stream)
    assert "LOCAL" in repr(lab.session)
    assert lab.sent() == [Frame(3, 0, 0, 0)]
