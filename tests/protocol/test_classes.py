"""Interactive streams pass bulk ones: who is bulk, who goes first, and how little a bulk peer may have under way."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.lab import WIN, Frame, Lab, data, decode, window
from tunnel.protocol.core import Role
from tunnel.protocol.limits import FILLING, SessionConfig
from tunnel.protocol.stream import MuxStream
from tunnel.protocol.windows import ReceiveWindow

KIB = 1024


def daemon(config: SessionConfig | None = None) -> Lab:
    return Lab(role=Role.CLIENT, config=config, accept_streams=False)


def upload(lab: Lab, stream: MuxStream, size: int) -> None:
    """Send `size` bytes to a peer that takes them at once."""
    while size:
        taken = lab.session.send(stream, bytes(min(size, 64 * KIB)))
        size -= taken
        for frame in lab.sent():
            if frame.kind == 0:
                lab.feed(window(frame.stream_id, n=frame.length))


def download(lab: Lab, stream: MuxStream, size: int) -> int:
    """The peer sends `size` bytes as far as it may, and all are read; how many came."""
    came = 0
    while came < size and (piece := min(size - came, 16 * KIB, stream.receive_window.remaining)):
        lab.feed(data(stream.stream_id, bytes(piece)))
        lab.read_all(stream)
        lab.sent()
        came += piece
    return came


@pytest.mark.parametrize("move", [upload, download])
def test_bulk_is_what_moves_more_than_256_kib_in_a_second_either_way(
    move: Callable[[Lab, MuxStream, int], object],
) -> None:
    lab = daemon()
    slow, fast = lab.open_outbound(), lab.open_outbound()
    for _ in range(20):
        lab.tick(0.5)
        move(lab, slow, 60 * KIB)
    assert not slow.bulk
    for _ in range(4):
        lab.tick(0.1)
        move(lab, fast, 128 * KIB)
    assert fast.bulk
    assert not slow.bulk


def test_a_bulk_stream_that_slows_down_is_interactive_again() -> None:
    lab = daemon()
    stream = lab.open_outbound()
    upload(lab, stream, 512 * KIB)
    assert stream.bulk
    lab.tick(0.5)
    assert stream.bulk
    for _ in range(3):
        lab.tick(1.0)
    assert not stream.bulk


def test_a_bulk_stream_whose_bytes_wait_here_stays_bulk() -> None:
    lab = daemon()
    stream = lab.open_outbound()
    upload(lab, stream, 512 * KIB)
    lab.send(stream, bytes(1 << 20))  # no credit comes
    for _ in range(5):
        lab.tick(1.0)
    assert stream.bulk


def test_the_watchdog_is_asked_for_while_there_is_bulk() -> None:
    lab = daemon()
    stream = lab.open_outbound()
    assert lab.session.next_deadline() > lab.now + 1.0
    upload(lab, stream, 512 * KIB)
    assert lab.session.next_deadline() <= lab.now + 1.0


def test_interactive_bytes_overtake_bulk_ones_that_were_queued_before() -> None:
    lab = daemon()
    bulks = [lab.open_outbound() for _ in range(8)]
    for stream in bulks:
        upload(lab, stream, 512 * KIB)
        lab.session.send(stream, bytes(64 * KIB))
    small = lab.session.open(lab.now)
    lab.session.send(small, b"scan")
    first = next(frame for frame in decode(lab.raw()) if frame.kind == 0)
    assert first == Frame(0, 0, small.stream_id, 4, b"scan")


def test_bulk_is_never_starved() -> None:
    lab = daemon()
    bulk = lab.open_outbound()
    upload(lab, bulk, 512 * KIB)
    talkers = [lab.open_outbound() for _ in range(8)]
    lab.session.send(bulk, bytes(FILLING))
    sent: dict[int, int] = {}
    for _ in range(64):  # the talkers could fill every batch
        lab.now += 1.0  # slow enough to be no bulk
        for stream in talkers:
            lab.session.send(stream, bytes(8 * KIB))
        batch = lab.session.data_to_send(64 * KIB, lab.now)
        for frame in decode(bytes(batch)):
            sent[frame.stream_id] = sent.get(frame.stream_id, 0) + frame.length
            if frame.stream_id != bulk.stream_id:
                lab.feed(window(frame.stream_id, n=frame.length))
    assert not any(stream.bulk for stream in talkers)
    assert sent[bulk.stream_id] == FILLING


def test_bulk_streams_share_what_is_left_fairly() -> None:
    lab = daemon()
    bulks = [lab.open_outbound() for _ in range(4)]
    for stream in bulks:
        upload(lab, stream, 512 * KIB)
    for stream in bulks:
        lab.session.send(stream, bytes(64 * KIB))
    order = [frame.stream_id for frame in lab.sent() if frame.kind == 0]
    assert sorted(order[:4]) == sorted(stream.stream_id for stream in bulks)


def outstanding(stream: MuxStream) -> int:
    return stream.receive_window.remaining + len(stream.received)


def beside(
    count: int, config: SessionConfig | None = None, *, rtt: float = 0.0
) -> tuple[Lab, list[MuxStream], MuxStream]:
    """`count` bulk downloads, and an interactive stream that has just asked something. `rtt` 0: not measured."""
    lab = daemon(config)
    lab.session._core.rtt_least = rtt
    bulks = [lab.open_outbound() for _ in range(count)]
    for stream in bulks:
        assert download(lab, stream, 1 << 20) == 1 << 20
        assert stream.bulk
    small = lab.open_outbound()
    lab.session.send(small, b"scan")
    lab.sent()
    return lab, bulks, small


@pytest.mark.parametrize(("count", "share"), [(1, 128), (2, 128), (4, 64), (8, 32), (64, 32)])
def test_bulk_gets_smaller_credit_beside_an_interactive_stream(count: int, share: int) -> None:
    lab, bulks, _ = beside(count)
    for stream in bulks:
        assert download(lab, stream, 1 << 20) == 1 << 20  # it never stalls
        assert outstanding(stream) <= share * KIB
        assert outstanding(stream) >= share * KIB // 2


@pytest.mark.parametrize(("rtt", "count", "share"), [
    (0.0003, 1, 64), (0.0003, 8, 8), (0.0003, 64, 8), (0.0039, 8, 8), (0.004, 8, 32), (0.02, 8, 41), (0.02, 1, 128),
])  # fmt: skip
def test_a_near_peer_gets_a_quarter_and_a_far_one_what_its_line_takes(rtt: float, count: int, share: int) -> None:
    lab, bulks, _ = beside(count, rtt=rtt)
    for stream in bulks:
        assert download(lab, stream, 1 << 20) == 1 << 20
        assert share * KIB // 2 <= outstanding(stream) <= share * KIB


def test_the_full_window_returns_when_nobody_interactive_speaks() -> None:
    lab, (bulk, *_), _ = beside(2)
    download(lab, bulk, 512 * KIB)
    assert outstanding(bulk) <= 128 * KIB
    for _ in range(4):
        lab.tick(1.0)
        download(lab, bulk, 1 << 20)
    assert bulk.bulk
    assert outstanding(bulk) > 128 * KIB


def test_credit_that_was_held_back_is_given_as_soon_as_it_is_free() -> None:
    lab, (bulk,), _ = beside(1)
    download(lab, bulk, (1 << 20) + 63 * KIB)  # between two credits
    held = bulk.receive_window.withheld
    assert held == WIN - 128 * KIB
    frames = []
    for _ in range(5):
        lab.tick(1.0)
        frames += lab.sent()
    assert [f.stream_id for f in frames if f.kind == 1] == [bulk.stream_id]
    assert outstanding(bulk) == WIN


def test_what_a_peer_says_of_its_own_accord_counts_too() -> None:
    lab = daemon()
    bulk, events = lab.open_outbound(), lab.open_outbound()
    download(lab, bulk, 1 << 20)
    for _ in range(6):
        lab.tick(0.5)
        lab.feed(data(events.stream_id, b"data: x\n\n"))
        lab.read_all(events)
        download(lab, bulk, 1 << 20)
    assert outstanding(bulk) <= 128 * KIB


def test_alone_a_bulk_stream_is_not_held_back() -> None:
    lab = daemon()
    bulk = lab.open_outbound()
    lab.session.send(bulk, b"GET")
    lab.sent()
    for _ in range(10):
        lab.tick(0.3)
        download(lab, bulk, 1 << 20)
    assert bulk.bulk
    assert bulk.receive_window.withheld == 0


def test_an_agent_holds_nothing_back() -> None:
    _, (bulk, *_), _ = beside(2, SessionConfig.for_agent())
    assert bulk.receive_window.withheld == 0


def test_a_bulk_stream_that_ends_is_forgotten() -> None:
    lab, bulks, _ = beside(2)
    for stream in bulks:
        lab.session.reset(stream)
    assert not lab.session._core.bulk
    lab.tick(5.0)
    assert not lab.session._core.crowded


@pytest.mark.parametrize(
    "change", [{"bulk_window": WIN + 1}, {"bulk_window_least": 7}, {"bulk_window": 1024, "bulk_window_least": 2048}]
)
def test_sizes_that_make_no_sense_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="bulk_window"):
        replace(SessionConfig(), **change)


class GoSender:
    """A hashicorp sender: a frame as large as window and body allow, whenever there is any window."""

    def __init__(self) -> None:
        self.window = WIN

    def take(self, most: int) -> int:
        size = min(self.window, most)
        self.window -= size
        return size


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "read", "hold", "free", "time"]), st.integers(1, 300_000)), max_size=120
    ),
    st.sampled_from([None, 0.05]),
)
def test_whatever_is_held_back_the_peer_is_never_stalled_for_good(
    steps: list[tuple[str, int]], rtt: float | None
) -> None:
    receiver, sender = ReceiveWindow(0.0), GoSender()
    unread, now = 0, 0.0
    due = False
    for what, number in [*steps, ("read", 1 << 30)]:
        if what == "send":
            size = sender.take(number)
            receiver.receive(size)
            unread += size
        elif what == "read":
            size = min(unread, number)
            unread -= size
            due = receiver.consume(size) or due
        elif what == "hold":
            due = receiver.withhold(max(2, number)) or due
        elif what == "free":
            due = receiver.withhold(None) or due
        else:
            now += number / 1e6
        if due:
            sender.window += receiver.take_credit(now, None if receiver.withheld else rtt, 1 << 20)
            due = False
        assert receiver.remaining == sender.window
        assert receiver.size == receiver.remaining + unread + receiver.owed
        assert sender.window > 0 or unread > 0


def test_a_download_that_is_held_back_over_and_over_arrives_whole() -> None:
    lab = daemon()
    streams = [lab.open_outbound() for _ in range(3)]
    small = lab.open_outbound()
    for round_ in range(40):
        lab.tick(0.7)
        if round_ % 3 == 0:
            lab.session.send(small, b"?")
            lab.sent()
            lab.feed(data(small.stream_id, b"!"), window(small.stream_id, n=1))
            lab.read_all(small)
        for n, stream in enumerate(streams):
            assert download(lab, stream, (n + 1) * 130_000) == (n + 1) * 130_000
    assert lab.error is None
