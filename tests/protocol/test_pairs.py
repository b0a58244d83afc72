"""Every input on the wire and from the caller, in every state that a session's stream can reach, both roles."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.lab import ACK, DELIVERIES, FIN, RST, SYN, WIN, Lab, data, window
from tunnel.protocol.core import Role
from tunnel.protocol.errors import Fault, LocalProtocolError
from tunnel.protocol.stream import MuxStream, State


def _inbound(lab: Lab) -> MuxStream:
    return lab.open_inbound(1)


def _received(lab: Lab) -> MuxStream:
    (stream,) = lab.feed(window(1, SYN))
    return stream


def _sent(lab: Lab) -> MuxStream:
    return lab.open_outbound(ack=False)


def _open(lab: Lab) -> MuxStream:
    return lab.open_outbound()


def _local_closed(lab: Lab) -> MuxStream:
    stream = _inbound(lab)
    lab.session.half_close(stream)
    lab.sent()
    return stream


def _local_closed_unacked(lab: Lab) -> MuxStream:
    stream = _sent(lab)
    lab.session.half_close(stream)
    lab.sent()
    return stream


def _remote_closed(lab: Lab) -> MuxStream:
    stream = _inbound(lab)
    lab.feed(window(1, FIN))
    return stream


def _remote_closed_unaccepted(lab: Lab) -> MuxStream:
    stream = _received(lab)
    lab.feed(window(1, FIN))
    return stream


def _gone(lab: Lab) -> MuxStream:
    stream = _remote_closed(lab)
    lab.session.half_close(stream)
    lab.sent()
    return stream


def _reset(lab: Lab) -> MuxStream:
    stream = _inbound(lab)
    lab.session.reset(stream)
    lab.sent()
    return stream


Make = Callable[[Lab], MuxStream]
"""How a stream comes into a state."""
STATES: dict[Make, tuple[Role, State]] = {
    _inbound: (Role.SERVER, State.OPEN),
    _received: (Role.SERVER, State.SYN_RECEIVED),
    _sent: (Role.CLIENT, State.SYN_SENT),
    _open: (Role.CLIENT, State.OPEN),
    _local_closed: (Role.SERVER, State.LOCAL_CLOSED),
    _local_closed_unacked: (Role.CLIENT, State.LOCAL_CLOSED),
    _remote_closed: (Role.SERVER, State.REMOTE_CLOSED),
    _remote_closed_unaccepted: (Role.SERVER, State.REMOTE_CLOSED),
    _gone: (Role.SERVER, State.GONE),
    _reset: (Role.SERVER, State.GONE),
}
WIRE = [
    make(1, flags)
    for flags in range(16)
    for make in (
        lambda i, f: data(i, b"", f),
        lambda i, f: data(i, b"payload", f),
        lambda i, f: window(i, f, 0),
        lambda i, f: window(i, f, 1000),
    )
]
CALLS = ("half_close", "close", "reset", "reset_when_flushed", "send", "read")


def test_every_frame_in_every_state() -> None:
    for make, index in itertools.product(STATES, range(len(WIRE))):
        try_pair(make, index, "whole")


@given(st.sampled_from(list(STATES)), st.integers(0, len(WIRE) - 1), st.sampled_from(DELIVERIES))
@settings(max_examples=300, deadline=None)
def test_any_frame_in_any_state_however_it_is_delivered(make: Make, index: int, delivery: str) -> None:
    try_pair(make, index, delivery)


def try_pair(make: Make, index: int, delivery: str) -> None:
    role, state = STATES[make]
    lab = Lab(delivery, role)
    stream = make(lab)
    assert stream.state is state
    lab.feed(WIRE[index])
    _check(lab, stream)
    # The session answers afterwards as one that lives, or has said GoAway(1) and is deaf.
    frames = lab.sent()
    if lab.error is not None:
        assert frames[-1] == (3, 0, 0, 1, b"")
        assert stream.gone
    assert sum(frame.flags == FIN for frame in frames) <= 1
    assert all(frame.flags in (0, SYN, ACK, FIN, RST) for frame in frames)


@given(
    st.sampled_from(list(STATES)),
    st.lists(st.one_of(st.sampled_from(CALLS), st.sampled_from(WIRE)), max_size=12),
)
@settings(max_examples=400, deadline=None)
def test_any_calls_and_frames_in_any_state(make: Make, inputs: list[str | bytes]) -> None:
    role, _ = STATES[make]
    lab = Lab("whole", role)
    stream = make(lab)
    fins = int(stream.state is State.LOCAL_CLOSED or (make is _gone))
    for what in inputs:
        if isinstance(what, bytes):
            lab.feed(what)
        elif what == "send":
            if stream.writable:
                lab.session.send(stream, b"bytes")
            else:
                with pytest.raises(LocalProtocolError):
                    lab.session.send(stream, b"bytes")
        else:
            getattr(lab.session, what)(stream)
        reused = lab.session.stream(1) not in (stream, None)
        if not reused:
            fins += sum(frame.flags == FIN for frame in lab.sent())
        _check(lab, stream)
    assert fins <= 1


def _check(lab: Lab, stream: MuxStream) -> None:
    session = lab.session
    live = [s for s in (session.stream(1), session.stream(2)) if s is not None]
    assert all(not s.gone for s in live)
    unread = {*live, stream, *session._core.lingering}
    assert session.buffered == sum(len(s.received) for s in unread)
    assert (stream in live) == (not stream.gone)
    if stream.fault is not None:
        assert stream.gone
        assert not stream.received or stream.fault in (Fault.PEER_RESET, Fault.SESSION_ENDED)
        assert not stream.send_buffer
    window_ = stream.receive_window
    assert 0 <= window_.remaining <= WIN
    assert session.streams_unacked >= 0
