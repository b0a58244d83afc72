"""What a connection tells of itself, for metrics and `/internal/session`."""

from __future__ import annotations

from dataclasses import dataclass

from tunnel.protocol.session import Session


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """Totals since the start, and the state now. Bytes are those of the yamux layer; `rtt` in seconds."""

    bytes_in: int
    bytes_out: int
    frames_in: int
    frames_out: int
    streams_opened: int
    streams_accepted: int
    streams_refused: int
    streams_open: int
    resets_in: int
    resets_out: int
    window_stalls: int
    credits_out: int
    glitches: int
    buffered: int
    rtt: float | None
    last_received: float


def statistics_of(session: Session) -> ConnectionStatistics:
    """Totals and state of `session` now."""
    counters = session.counters
    return ConnectionStatistics(
        bytes_in=counters.bytes_in,
        bytes_out=counters.bytes_out,
        frames_in=counters.frames_in,
        frames_out=counters.frames_out,
        streams_opened=counters.opened_out,
        streams_accepted=counters.opened_in,
        streams_refused=counters.refused_in,
        streams_open=session.streams_open,
        resets_in=counters.resets_in,
        resets_out=counters.resets_out,
        window_stalls=counters.window_stalls,
        credits_out=counters.credits_out,
        glitches=counters.glitches,
        buffered=session.buffered,
        rtt=session.rtt,
        last_received=session.last_received,
    )
