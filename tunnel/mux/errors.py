"""What the users of a tunnel's streams catch, how the core's reasons become it, and how a connection ended.

Every error is a trio.BrokenResourceError, so that code which knows only Trio's streams treats them as what they are;
none ever looks like an end of stream.
"""

from dataclasses import dataclass
from typing import Final

import trio

from tunnel.protocol.errors import Ending, EndKind, Fault, OpenRefusal
from tunnel.protocol.stream import MuxStream


class TunnelError(trio.BrokenResourceError):
    """`reason` is a sentence for a log, `wire` the GoAway code that was involved or None."""

    def __init__(self, reason: str, wire: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wire = wire


class OpenTimeout(TunnelError):
    """The peer did not accept the stream in time. The session goes on."""


class GoingAway(TunnelError):
    """The peer takes no more streams. Those that are open go on."""


class TooManyStreams(TunnelError):
    """As many streams are open as the session may have, or its ids are used up."""


class StreamReset(TunnelError):
    """The peer broke the stream off, or a limit did: what was not received is lost."""


class StreamRefused(StreamReset):
    """The peer answered the open with a reset: nothing was taken, so another try is safe."""


class SessionEnded(TunnelError):
    """The whole session is gone, and its streams with it."""


@dataclass(frozen=True, slots=True)
class EndReason:
    """Why a connection ended. `close_code` is the WebSocket's: the peer's if `remote`, else the one we closed with."""

    kind: EndKind
    text: str
    close_code: int
    remote: bool


_OPEN: Final[dict[OpenRefusal, type[TunnelError]]] = {
    OpenRefusal.ENDED: SessionEnded,
    OpenRefusal.GOING_AWAY: GoingAway,
    OpenRefusal.TOO_MANY: TooManyStreams,
    OpenRefusal.IDS_EXHAUSTED: TooManyStreams,
}
_FAULT: Final[dict[Fault, type[TunnelError]]] = {
    Fault.REFUSED: StreamRefused,
    Fault.GOING_AWAY: GoingAway,
    Fault.OPEN_TIMEOUT: OpenTimeout,
    Fault.SESSION_ENDED: SessionEnded,
}

# WebSocket close codes by which the daemon says why (tunnel.md; the agent's reaction: docs/wire.md).
CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_ABNORMAL: Final = 1006
CLOSE_LIVENESS: Final = 4408
CLOSE_ABUSE: Final = 4429

CLOSE_CODES: Final[dict[EndKind, int]] = {
    EndKind.LOCAL: CLOSE_NORMAL,
    EndKind.REMOTE: CLOSE_NORMAL,
    EndKind.PROTOCOL: CLOSE_PROTOCOL_ERROR,
    EndKind.ABUSE: CLOSE_ABUSE,
    EndKind.LIVENESS: CLOSE_LIVENESS,
    EndKind.TRANSPORT: CLOSE_ABNORMAL,
}


def open_error(why: OpenRefusal, ending: Ending | None) -> TunnelError:
    """What `open_stream` raises when the core refused."""
    if ending is not None:
        return SessionEnded(ending.text, ending.wire_code)
    return _OPEN[why](why.value)


def stream_error(stream: MuxStream, ending: Ending | None) -> TunnelError:
    """What an operation on a broken stream raises. `stream.fault` must be set."""
    fault = stream.fault or Fault.SESSION_ENDED
    if fault is Fault.SESSION_ENDED and ending is not None:
        return SessionEnded(ending.text, ending.wire_code)
    return _FAULT.get(fault, StreamReset)(f"stream {stream.stream_id}: {fault.value}")
