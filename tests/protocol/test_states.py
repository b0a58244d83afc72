"""The state table: every pair of state and input is there, and keeps what holds for any stream."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.errors import LocalProtocolError
from tunnel.protocol.states import TABLE, Input, Verdict, apply
from tunnel.protocol.stream import MuxStream, State

PAIRS = list(itertools.product(State, Input))
# yamux.md §5, written as a reader of that table would.
EXPECTED = {
    (State.SYN_SENT, Input.RECV_ACK): State.OPEN,
    (State.SYN_SENT, Input.RECV_DATA): State.OPEN,
    (State.SYN_SENT, Input.RECV_CREDIT): State.OPEN,
    (State.SYN_SENT, Input.RECV_FIN): State.REMOTE_CLOSED,
    (State.SYN_SENT, Input.SEND_FIN): State.LOCAL_CLOSED,
    (State.SYN_SENT, Input.OPEN_TIMEOUT): State.GONE,
    (State.SYN_RECEIVED, Input.ACCEPT): State.OPEN,
    (State.SYN_RECEIVED, Input.RECV_FIN): State.REMOTE_CLOSED,
    (State.SYN_RECEIVED, Input.SEND_FIN): State.LOCAL_CLOSED,
    (State.OPEN, Input.RECV_FIN): State.REMOTE_CLOSED,
    (State.OPEN, Input.SEND_FIN): State.LOCAL_CLOSED,
    (State.LOCAL_CLOSED, Input.RECV_FIN): State.GONE,
    (State.REMOTE_CLOSED, Input.SEND_FIN): State.GONE,
    (State.REMOTE_CLOSED, Input.RECV_DATA): State.GONE,
}
ENDS = {Input.RECV_RST, Input.RESET, Input.CLOSE_TIMEOUT, Input.SESSION_END}


def stream_in(state: State) -> MuxStream:
    stream = MuxStream(1, inbound=state is State.SYN_RECEIVED, now=0.0)
    stream.state = state
    return stream


@given(st.sampled_from(PAIRS))
def test_every_pair_is_answered_and_moves_as_specified(pair: tuple[State, Input]) -> None:
    state, what = pair
    stream = stream_in(state)
    _, verdict = TABLE[what][state]
    if verdict is Verdict.MISUSE:
        with pytest.raises(LocalProtocolError, match=what.name):
            apply(stream, what)
        assert stream.state is state
        return
    assert apply(stream, what) is verdict
    expected = State.GONE if what in ENDS else EXPECTED.get(pair, state)
    assert stream.state is expected
    assert stream.plain_receive == (expected is State.OPEN)


def test_the_table_is_whole() -> None:
    assert {(state, what) for what, rules in TABLE.items() for state in rules} == set(PAIRS)


@given(st.lists(st.sampled_from(list(Input)), max_size=40), st.booleans())
def test_no_walk_leaves_gone_or_sends_two_fins(walk: list[Input], inbound: bool) -> None:
    stream = MuxStream(1, inbound=inbound, now=0.0)
    fins = 0
    for what in walk:
        was = stream.state
        try:
            verdict = apply(stream, what)
        except LocalProtocolError:
            assert stream.state is was
            continue
        fins += what is Input.SEND_FIN
        if was is State.GONE:
            assert stream.state is State.GONE
            assert verdict is Verdict.IGNORE
    assert fins <= 1


def test_a_second_syn_is_fatal_wherever_the_stream_is() -> None:
    for state in State:
        if state is not State.GONE:
            assert TABLE[Input.RECV_SYN][state] == (state, Verdict.FATAL)
