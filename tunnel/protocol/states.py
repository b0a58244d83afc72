"""The life of a stream as a table: states by inputs. Only this module changes a stream's state.

Knows no bytes, windows or queues. Whether the ACK was sent or received are bits beside the state, because either may
come at any point of it (yamux.md §5). Each pair is listed, so that none can be forgotten.
"""

from enum import Enum, IntEnum
from typing import Final

from tunnel.protocol.errors import LocalProtocolError
from tunnel.protocol.stream import MuxStream, State


class Input(IntEnum):
    """What can happen to a stream that exists."""

    RECV_SYN = 1  # a second one: the id is live
    RECV_ACK = 2
    RECV_DATA = 3  # within the window; payload or not
    RECV_CREDIT = 4
    RECV_FIN = 5
    RECV_RST = 6
    ACCEPT = 7  # the application took an inbound stream
    SEND_FIN = 8  # the last byte went out, and now the FIN does
    RESET = 9
    OPEN_TIMEOUT = 10
    CLOSE_TIMEOUT = 11
    SESSION_END = 12


class Verdict(Enum):
    """What the caller of `apply` has to do besides the change of state."""

    OK = 1
    IGNORE = 2
    GLITCH = 3  # useless but harmless: counted
    RESET = 4  # answer with RST
    FATAL = 5  # the session ends with GoAway(1)
    MISUSE = 6  # our own caller is wrong


_S, _R, _O, _L, _M, _X = (
    State.SYN_SENT,
    State.SYN_RECEIVED,
    State.OPEN,
    State.LOCAL_CLOSED,
    State.REMOTE_CLOSED,
    State.GONE,
)
_V = Verdict

Rule = tuple[State, Verdict]

TABLE: Final[dict[Input, dict[State, Rule]]] = {
    Input.RECV_SYN: {
        _S: (_S, _V.FATAL),
        _R: (_R, _V.FATAL),
        _O: (_O, _V.FATAL),
        _L: (_L, _V.FATAL),
        _M: (_M, _V.FATAL),
        _X: (_X, _V.IGNORE),
    },
    # A second ACK, and one for a stream that the peer opened, are told by the bits.
    Input.RECV_ACK: {
        _S: (_O, _V.OK),
        _R: (_R, _V.GLITCH),
        _O: (_O, _V.OK),
        _L: (_L, _V.OK),
        _M: (_M, _V.OK),
        _X: (_X, _V.IGNORE),
    },
    # From SYN_SENT on, any frame of the peer's implies the ACK that Go omits after our early half-close.
    Input.RECV_DATA: {
        _S: (_O, _V.OK),
        _R: (_R, _V.OK),
        _O: (_O, _V.OK),
        _L: (_L, _V.OK),
        _M: (_X, _V.RESET),
        _X: (_X, _V.IGNORE),
    },
    Input.RECV_CREDIT: {
        _S: (_O, _V.OK),
        _R: (_R, _V.OK),
        _O: (_O, _V.OK),
        _L: (_L, _V.IGNORE),
        _M: (_M, _V.OK),
        _X: (_X, _V.IGNORE),
    },
    Input.RECV_FIN: {
        _S: (_M, _V.OK),
        _R: (_M, _V.OK),
        _O: (_M, _V.OK),
        _L: (_X, _V.OK),
        _M: (_M, _V.GLITCH),
        _X: (_X, _V.IGNORE),
    },
    Input.RECV_RST: {
        _S: (_X, _V.OK),
        _R: (_X, _V.OK),
        _O: (_X, _V.OK),
        _L: (_X, _V.OK),
        _M: (_X, _V.OK),
        _X: (_X, _V.IGNORE),
    },
    Input.ACCEPT: {
        _S: (_S, _V.MISUSE),
        _R: (_O, _V.OK),
        _O: (_O, _V.MISUSE),
        _L: (_L, _V.MISUSE),
        _M: (_M, _V.OK),
        _X: (_X, _V.MISUSE),
    },
    # Sending a second FIN kills a hashicorp session: there is no pair for it.
    Input.SEND_FIN: {
        _S: (_L, _V.OK),
        _R: (_L, _V.OK),
        _O: (_L, _V.OK),
        _L: (_L, _V.MISUSE),
        _M: (_X, _V.OK),
        _X: (_X, _V.MISUSE),
    },
    Input.RESET: {
        _S: (_X, _V.RESET),
        _R: (_X, _V.RESET),
        _O: (_X, _V.RESET),
        _L: (_X, _V.RESET),
        _M: (_X, _V.RESET),
        _X: (_X, _V.IGNORE),
    },
    Input.OPEN_TIMEOUT: {
        _S: (_X, _V.RESET),
        _R: (_R, _V.IGNORE),
        _O: (_O, _V.IGNORE),
        _L: (_L, _V.IGNORE),
        _M: (_M, _V.IGNORE),
        _X: (_X, _V.IGNORE),
    },
    # A FIN that waits behind bytes which nobody reads is the same wait as one that was sent.
    Input.CLOSE_TIMEOUT: {
        _S: (_X, _V.RESET),
        _R: (_X, _V.RESET),
        _O: (_X, _V.RESET),
        _L: (_X, _V.RESET),
        _M: (_X, _V.RESET),
        _X: (_X, _V.IGNORE),
    },
    Input.SESSION_END: {
        _S: (_X, _V.OK),
        _R: (_X, _V.OK),
        _O: (_X, _V.OK),
        _L: (_X, _V.OK),
        _M: (_X, _V.OK),
        _X: (_X, _V.IGNORE),
    },
}


def apply(stream: MuxStream, what: Input) -> Verdict:
    """Move `stream` on and say what follows. Raises LocalProtocolError if the caller had no right to `what`."""
    state, verdict = TABLE[what][stream.state]
    if verdict is Verdict.MISUSE:
        raise LocalProtocolError(f"{what.name} of a stream in {stream.state.name}")
    stream.state = state
    # The one question of the hot path, answered beforehand. Closed by the application: each frame needs a look.
    stream.plain_receive = state is State.OPEN and not stream.discarding
    return verdict
