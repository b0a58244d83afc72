"""What can go wrong in the multiplexer, and whose fault it was.

Knows nothing of how an error is shown to a user or which WebSocket close code carries it: the shell maps `Ending`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

# GoAway codes of the yamux specification.
GOAWAY_NORMAL: Final = 0
GOAWAY_PROTOCOL_ERROR: Final = 1
GOAWAY_INTERNAL_ERROR: Final = 2


class EndKind(Enum):
    """Why a session ended."""

    LOCAL = "closed here"
    REMOTE = "closed by the peer"
    PROTOCOL = "protocol error"
    ABUSE = "limit exceeded"
    LIVENESS = "peer fell silent"
    TRANSPORT = "transport failed"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session ended: `kind`, a sentence for the log, and the GoAway code that was sent or received, if any."""

    kind: EndKind
    text: str
    wire_code: int | None = None


class ProtocolError(Exception):
    """Base of both: a test may expect this and nothing else from the core."""


class LocalProtocolError(ProtocolError):
    """The caller asked for what the state forbids: a fault of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule; the session has ended and its GoAway waits in `data_to_send`.

    `wire_code` is the GoAway code; `abuse` tells a limit exceeded from a malformed frame.
    """

    def __init__(self, text: str, *, abuse: bool = False, wire_code: int = GOAWAY_PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.text = text
        self.abuse = abuse
        self.wire_code = wire_code


class OpenRefusal(Enum):
    """Why a stream cannot be opened now."""

    ENDED = "the session has ended"
    GOING_AWAY = "the peer is going away"
    TOO_MANY = "too many streams"
    IDS_EXHAUSTED = "stream ids are used up"


class OpenRefused(LocalProtocolError):
    """`Session.open` could not open; the session itself is unharmed. `why` says what to do about it."""

    def __init__(self, why: OpenRefusal) -> None:
        super().__init__(why.value)
        self.why = why


class Fault(Enum):
    """Why a stream broke. A stream that ended by FIN in both directions has none."""

    PEER_RESET = "reset by the peer"
    REFUSED = "refused by the peer"
    LOCAL_RESET = "reset here"
    GOING_AWAY = "the peer is going away and was not asked"
    OPEN_TIMEOUT = "the peer did not accept in time"
    ACCEPT_TIMEOUT = "not accepted here in time"
    CLOSE_TIMEOUT = "no progress after the half-close"
    DATA_AFTER_FIN = "the peer sent data after its end"
    ABANDONED = "closed here with bytes still coming"
    BUFFER_LIMIT = "the session held too many unread bytes"
    SESSION_ENDED = "the session ended"
