"""Limits and timeouts of yamux.md §9 and §12 beyond the numbered cases, and the choices that the table leaves open."""

from dataclasses import replace
from typing import Any

import pytest

from tests.protocol.lab import ACK, FIN, G1, RST, SYN, WIN, Frame, Lab, data, goaway, ping, raw_header, window
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind, Fault, OpenRefusal, OpenRefused
from tunnel.protocol.limits import MIB, Rate, SessionConfig, TokenBucket


@pytest.mark.parametrize(
    "wrong",
    [
        {"receive_window": WIN - 1},
        {"receive_window": 2 * MIB},
        {"max_receive_window": 2**32},
        {"max_batch": 63},
        {"quantum": 0},
        {"send_buffer": 0},
        {"max_unacked": 0},
        {"accept_backlog": 0},
        {"late_ids": 0},
        {"soft_buffered": 65 * MIB},
        {"ping_idle": 40.0},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|need"):
        replace(SessionConfig(), **wrong)


def test_the_limits_are_those_of_the_specification() -> None:
    """yamux.md §9, §12 and §7, written down anew: most tests bring limits of their own."""
    wanted = {
        "max_inbound_streams": 256,
        "accept_backlog": 256,
        "max_unacked": 256,
        "receive_window": 262_144,
        "max_receive_window": 1_048_576,
        "soft_buffered": 16_777_216,
        "hard_buffered": 67_108_864,
        "max_batch": 65_536,
        "quantum": 16_384,
        "syn_rate": Rate(200, 512),
        "rapid_reset_rate": Rate(50, 200),
        "rapid_reset_age": 1.0,
        "ping_rate": Rate(10, 32),
        "glitch_rate": Rate(100, 1000),
        "late_ids": 1024,
        "max_pending_resets": 1024,
        "open_timeout": 10.0,
        "open_probe": 2.0,
        "close_timeout": 300.0,
        "partial_frame_timeout": 30.0,
        "write_timeout": 30.0,
        "ping_idle": 15.0,
        "liveness_timeout": 40.0,
        "flush_timeout": 1.0,
    }
    assert {name: getattr(SessionConfig(), name) for name in wanted} == wanted
    assert SessionConfig().accept_timeout <= 10.0


def test_a_bucket_refills_with_time_and_no_further() -> None:
    bucket = TokenBucket(Rate(10, 3), 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(0.1)
    assert not bucket.take(0.1)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(50.0)  # a clock that steps back gives nothing


# Opening


def test_syns_beyond_the_rate_are_reset_then_end_the_session() -> None:
    lab = Lab(config=SessionConfig(max_inbound_streams=5000, accept_backlog=5000, syn_rate=Rate(200, 512)))
    lab.feed(*(window(2 * n + 1, SYN) for n in range(1024)))
    assert sum(frame.flags == RST for frame in lab.sent()) == 512
    assert lab.error is None
    lab.feed(window(9001, SYN))
    assert lab.sent() == [G1]


def test_more_inbound_streams_than_allowed_are_reset() -> None:
    lab = Lab(config=SessionConfig(max_inbound_streams=2))
    first = lab.open_inbound(1)
    lab.open_inbound(3)
    lab.feed(window(5, SYN))
    assert lab.sent() == [Frame(1, RST, 5, 0)]
    lab.session.reset(first)
    lab.sent()
    lab.open_inbound(7)


def test_refusals_that_nobody_reads_end_the_session() -> None:
    lab = Lab(accept_streams=False, config=SessionConfig(max_pending_resets=10))
    lab.feed(*(window(2 * n + 1, SYN) for n in range(11)))
    assert lab.sent() == [G1]


def test_a_stream_reset_before_it_was_accepted_leaves_the_queue() -> None:
    lab = Lab()
    lab.feed(window(1, SYN), window(3, SYN), window(1, RST))
    stream = lab.session.accept()
    assert stream is not None
    assert stream.stream_id == 3
    assert lab.session.accept() is None


def test_a_stream_that_nobody_accepts_is_reset_after_ten_seconds() -> None:
    lab = Lab()
    (stream,) = lab.feed(window(1, SYN))
    assert lab.session.next_deadline() == lab.now + 10
    lab.tick(10)
    assert lab.sent() == [Frame(1, RST, 1, 0)]
    assert stream.fault is Fault.ACCEPT_TIMEOUT


def test_opens_without_an_answer_cost_themselves_never_the_session() -> None:
    """Some peers acknowledge with their first own frame; an ACK may queue behind megabytes. Only silence is an end."""
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_unacked=4))
    opened = []
    for n in range(20):
        opened.append(lab.session.open(lab.now))
        lab.tick(5)
        lab.sent()
        lab.feed(ping(n, ACK))
    assert lab.session.ending is None
    assert {stream.fault for stream in opened[:-2]} == {Fault.OPEN_TIMEOUT}


def test_an_open_whose_bytes_went_to_a_peer_that_lives_is_not_given_up() -> None:
    lab = Lab(role=Role.CLIENT)
    asked, idle = lab.open_outbound(ack=False), lab.open_outbound(ack=False)
    lab.session.send(asked, b"request")
    lab.tick(2.0)
    assert Frame(2, SYN, 0, 0) in lab.sent(), "a peer that said nothing since is asked whether it lives"
    lab.feed(ping(0, ACK))
    lab.tick(8.0)
    assert (asked.fault, idle.fault) == (None, Fault.OPEN_TIMEOUT)
    for n in range(1, 12):  # as long as it lives: how long its answer may take is for others to say
        lab.tick(10.0)
        lab.sent()
        lab.feed(ping(n, ACK))
    assert asked.fault is None
    assert lab.session.streams_unacked == 1
    lab.feed(data(1, b"answer"))
    assert lab.session.read(asked) == b"answer"
    assert lab.session.streams_unacked == 0


def test_a_peer_that_is_silent_is_not_excused() -> None:
    lab = Lab(role=Role.CLIENT)
    asked = lab.open_outbound(ack=False)
    lab.session.send(asked, b"request")
    lab.sent()
    lab.tick(10.0)
    assert asked.fault is Fault.OPEN_TIMEOUT
    assert lab.session.ending is None


def test_half_closed_streams_that_wait_for_their_answer_are_no_reason_to_end() -> None:
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_unacked=2))
    for _ in range(2):
        lab.session.half_close(lab.open_outbound(ack=False))
    lab.sent()
    for _ in range(4):
        lab.tick(10)
        lab.feed(ping(1))
    assert lab.session.ending is None
    lab.feed(data(1, b"late answer"))
    assert lab.session.streams_unacked == 1


def test_a_slot_of_a_stream_that_we_reset_stays_taken_until_a_later_ack() -> None:
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_unacked=2))
    lab.session.reset(lab.open_outbound(ack=False))  # hashicorp keeps it in its accept queue
    lab.open_outbound(ack=False)
    third = lab.session.open(lab.now)
    assert lab.sent() == []
    lab.feed(window(3, ACK))
    assert lab.sent() == [Frame(1, SYN, third.stream_id, 0)]
    assert lab.session.streams_unacked == 1


@pytest.mark.parametrize("how", ["time", "late ack", "refusal", "a ghost in each slot"])
def test_other_ways_in_which_a_slot_returns(how: str) -> None:
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_unacked=2))
    first = lab.open_outbound(ack=False)
    if how == "refusal":
        lab.feed(window(1, RST))
        assert first.fault is Fault.REFUSED
    else:
        lab.session.reset(first)
    lab.tick(5)
    second = lab.open_outbound(ack=False)
    lab.tick(4)
    third = lab.session.open(lab.now)
    if how != "refusal":
        assert [frame for frame in lab.sent() if frame.kind != 2] == []
    if how == "late ack":
        lab.feed(window(1, ACK))
    elif how == "time":
        lab.tick(1.5)
    elif how == "a ghost in each slot":
        lab.session.reset(second)
    assert Frame(1, SYN, third.stream_id, 0) in lab.sent()


def test_a_queued_open_that_is_reset_says_nothing() -> None:
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_unacked=1))
    lab.open_outbound(ack=False)
    queued = lab.session.open(lab.now)
    lab.session.send(queued, b"never sent")
    lab.feed(data(queued.stream_id, b"the peer cannot know this id"))
    assert lab.session.counters.glitches == 1
    lab.session.reset(queued)
    lab.feed(window(1, ACK))
    assert lab.sent() == []


def test_queued_opens_fail_when_the_peer_goes_away() -> None:
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_unacked=1))
    asked = lab.open_outbound(ack=False)
    queued = lab.session.open(lab.now)
    lab.feed(goaway(0), goaway(0))
    assert queued.fault is Fault.GOING_AWAY
    assert asked.fault is None
    assert lab.session.counters.glitches == 1


def test_too_many_outbound_streams() -> None:
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_outbound_streams=1))
    lab.open_outbound()
    with pytest.raises(OpenRefused) as refused:
        lab.session.open(lab.now)
    assert refused.value.why is OpenRefusal.TOO_MANY


# Windows and buffers


def test_the_window_doubles_for_a_fast_reader_up_to_its_limit() -> None:
    lab = Lab(config=SessionConfig(max_receive_window=MIB))
    stream = lab.open_inbound()
    granted = []
    for _ in range(12):
        size = stream.receive_window.size // 2
        lab.now += 0.001
        lab.feed(data(1, bytes(size)))
        lab.session.read(stream)
        for frame in lab.sent():
            if frame.kind == 2:  # the round trip is measured when it is first needed
                lab.now += 0.05
                lab.feed(ping(frame.length, ACK))
            else:
                granted.append(frame.length)
    assert stream.receive_window.size == MIB
    assert granted[-1] == MIB // 2
    assert lab.session.rtt is not None


def test_no_growth_for_a_slow_reader_nor_above_the_soft_limit() -> None:
    for slow, soft in ((True, 16 * MIB), (False, 1)):
        lab = Lab(config=SessionConfig(soft_buffered=soft))
        other = lab.open_inbound(3)
        lab.session.ping(lab.now)
        lab.sent()
        lab.now += 0.05
        lab.feed(ping(0, ACK), data(3, b"unread"))
        stream = lab.open_inbound()
        for _ in range(5):
            lab.now += 10 if slow else 0.001
            lab.feed(data(1, bytes(WIN // 2)))
            lab.session.read(stream)
            lab.sent()
        assert stream.receive_window.size == WIN
        assert other.fault is None


def test_a_larger_window_is_announced_with_syn_and_ack() -> None:
    config = SessionConfig(receive_window=2 * WIN, max_receive_window=2 * WIN)
    lab = Lab(role=Role.CLIENT, config=config)
    lab.session.open(lab.now)
    assert lab.sent() == [Frame(1, SYN, 1, WIN)]
    lab = Lab(config=config)
    lab.feed(window(1, SYN))
    lab.session.accept()
    assert lab.sent() == [Frame(1, ACK, 1, WIN)]
    lab.feed(data(1, bytes(2 * WIN)))
    assert lab.error is None


def test_over_the_hard_limit_the_fullest_stream_is_reset() -> None:
    lab = Lab(config=SessionConfig(soft_buffered=100_000, hard_buffered=400_000))
    streams = [lab.open_inbound(2 * n + 1) for n in range(3)]
    for stream, size in zip(streams, (100_000, 200_000, 150_000), strict=True):
        lab.feed(data(stream.stream_id, bytes(size)))
    assert [stream.fault for stream in streams] == [None, Fault.BUFFER_LIMIT, None]
    assert lab.session.buffered == 250_000
    assert lab.sent() == [Frame(1, RST, 3, 0)]


def test_unread_bytes_of_a_finished_stream_count_too() -> None:
    lab = Lab(config=SessionConfig(soft_buffered=100_000, hard_buffered=200_000))
    stream = lab.open_inbound(1)
    lab.session.half_close(stream)
    lab.sent()
    lab.feed(data(1, bytes(150_000), FIN))
    assert stream.gone
    assert lab.session.buffered == 150_000
    lab.open_inbound(3)
    lab.feed(data(3, bytes(60_000)))
    assert stream.fault is Fault.BUFFER_LIMIT
    assert lab.session.buffered == 60_000


@pytest.mark.parametrize("inside", [True, False])
def test_bytes_for_a_stream_that_the_application_closed_reset_it(inside: bool) -> None:
    lab = Lab()
    stream = lab.open_inbound()
    if inside:
        lab.feed(raw_header(0, 0, 0, 1, 10) + b"first")
        assert lab.session.read(stream) == b"first"
    lab.session.close(stream)
    assert lab.sent() == [Frame(1, FIN, 1, 0)]
    lab.feed(b"other" if inside else data(1, b"other"))
    assert lab.sent() == [Frame(1, RST, 1, 0)]
    assert stream.fault is Fault.ABANDONED
    assert lab.session.buffered == 0


def test_a_stream_closed_with_unread_bytes_is_reset_at_once() -> None:
    lab = Lab()
    stream = lab.open_inbound()
    lab.feed(data(1, b"unread"))
    lab.session.close(stream)
    assert lab.sent() == [Frame(1, RST, 1, 0)]


def test_a_goaway_with_a_code_is_the_last_word() -> None:
    lab = Lab()
    stream = lab.open_inbound()
    lab.session.send(stream, b"too late")
    lab.session.go_away(2)
    assert lab.sent() == [Frame(3, 0, 0, 2)]
    assert stream.fault is Fault.SESSION_ENDED
    with pytest.raises(OpenRefused) as refused:
        lab.session.open(lab.now)
    assert refused.value.why is OpenRefusal.ENDED
    lab.session.go_away(2)
    assert lab.sent() == []


def test_reading_a_finished_stream_to_its_end_forgets_it() -> None:
    lab = Lab()
    stream = lab.open_inbound()
    lab.session.half_close(stream)
    lab.sent()
    lab.feed(data(1, b"unread", FIN))
    assert lab.session.read(stream, 2) == b"un"
    assert lab.session._core.lingering == {stream}
    assert lab.session.read(stream) == b"read"
    assert not lab.session._core.lingering


def test_closing_a_finished_stream_gives_its_unread_bytes_back() -> None:
    lab = Lab()
    stream = lab.open_inbound()
    lab.session.half_close(stream)
    lab.sent()
    lab.feed(data(1, b"unread", FIN))
    lab.session.close(stream)
    assert lab.session.buffered == 0


def test_only_so_many_closed_streams_are_remembered() -> None:
    lab = Lab(config=SessionConfig(late_ids=2))
    for stream_id in (1, 3, 5):
        lab.session.reset(lab.open_inbound(stream_id))
    lab.sent()
    lab.feed(data(5, b"known"), data(3, b"known"))
    assert lab.session.counters.glitches == 0
    lab.feed(data(1, b"forgotten"))
    assert lab.session.counters.glitches == 1


def test_a_huge_frame_for_a_stream_nobody_knows_is_not_swallowed() -> None:
    lab = Lab()
    lab.feed(raw_header(0, 0, 0, 99, WIN + 1))
    assert lab.sent() == [G1]


@pytest.mark.parametrize("credit", [1, 1000, WIN // 2 - 1])
@pytest.mark.parametrize("closed", [False, True])
def test_credit_that_nobody_needs_is_rated_as_what_is_useless(credit: int, *, closed: bool) -> None:
    """Twelve bytes each, which grant what nothing was sent for: as a flood of empty ones."""
    lab = Lab("whole")
    stream = lab.open_inbound()
    if closed:
        lab.session.half_close(stream)
        lab.sent()
    lab.feed(*[window(1, n=credit)] * 2000)
    assert lab.session.ending is not None
    assert lab.session.ending.kind is EndKind.ABUSE


@pytest.mark.parametrize("closed", [False, True])
def test_credit_for_what_was_sent_is_none_of_it_however_small(*, closed: bool) -> None:
    """py-libp2p's yamux credits each read of its application."""
    lab = Lab("whole")
    stream = lab.open_inbound()
    lab.send(stream, bytes(4000))
    if closed:
        lab.session.half_close(stream)
        lab.sent()
    lab.feed(*[window(1, n=1)] * 4000)
    assert lab.session.counters.glitches == 0
    lab.feed(window(1, n=1))
    assert lab.session.counters.glitches == 1


def test_a_larger_window_is_credited_by_the_half_of_it() -> None:
    """frp grants 6 MiB with its ACK, and credits half of that at once."""
    lab = Lab("whole", Role.CLIENT)
    stream = lab.open_outbound(ack=False)
    lab.feed(window(stream.stream_id, ACK, n=23 * WIN))
    for _ in range(100):
        stream.send_window.spend(12 * WIN)
        lab.feed(window(stream.stream_id, n=12 * WIN))
    assert lab.session.counters.glitches == 0


def test_a_few_bytes_more_with_the_ack_are_a_window_as_any() -> None:
    lab = Lab("whole", Role.CLIENT)
    for _ in range(5):
        stream = lab.open_outbound(ack=False)
        lab.feed(window(stream.stream_id, ACK, n=4096))
    assert lab.session.counters.glitches == 0
