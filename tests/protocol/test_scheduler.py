"""Who speaks when: deficit round robin, control before data, batches of any size."""

import pytest

from tests.protocol.lab import ACK, FIN, RST, SYN, Lab, ping
from tunnel.protocol.core import Role
from tunnel.protocol.limits import FILLING
from tunnel.protocol.stream import State


def test_bulk_streams_share_the_wire_fairly() -> None:
    lab = Lab()
    streams = [lab.open_inbound(2 * n + 1) for n in range(4)]
    for stream in streams:
        lab.session.send(stream, bytes(FILLING))
    order = [(frame.stream_id, frame.length) for frame in lab.sent()]
    assert [stream_id for stream_id, _ in order[:4]] == [1, 3, 5, 7]
    per_round = [sum(n for i, n in order if i == stream.stream_id) for stream in streams]
    assert per_round == [FILLING] * 4
    ahead = max(
        abs(sum(n for i, n in order[:k] if i == a) - sum(n for i, n in order[:k] if i == b))
        for k in range(len(order) - 4)
        for a in (1, 3)
        for b in (5, 7)
    )
    assert ahead <= 2 * 16384


def test_control_comes_before_data_and_syn_before_both_of_its_stream() -> None:
    lab = Lab(role=Role.CLIENT)
    old = lab.open_outbound()
    doomed = lab.open_outbound()
    lab.session.send(old, bytes(1000))
    lab.session.reset(doomed)
    new = lab.session.open(lab.now)
    lab.session.send(new, b"x")
    lab.session.half_close(new)
    lab.session.go_away()
    lab.feed(ping(9))
    assert [(f.kind, f.flags, f.stream_id) for f in lab.sent()] == [
        (3, 0, 0),
        (2, ACK, 0),
        (1, RST, doomed.stream_id),
        (1, SYN, new.stream_id),
        (0, 0, old.stream_id),
        (0, 0, new.stream_id),
        (1, FIN, new.stream_id),
    ]


@pytest.mark.parametrize("limit", [64, 65, 100, 1000])
def test_small_batches_say_the_same(limit: int) -> None:
    lab = Lab(role=Role.CLIENT)
    streams = [lab.session.open(lab.now) for _ in range(20)]
    for stream in streams:
        lab.session.send(stream, bytes(500))
        lab.session.half_close(stream)
    wire = b""
    while batch := lab.raw(limit):
        wire += batch
    peer = Lab()
    peer.feed(wire)
    assert peer.session.incoming == 20
    assert peer.session.buffered == 20 * 500
    assert all(stream.state is State.LOCAL_CLOSED for stream in streams)
