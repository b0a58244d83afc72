"""Every limit and timeout of a session, and the bucket that counts rates. Knows no frame and no stream."""

from dataclasses import dataclass, replace
from typing import Final

from tunnel.protocol.frames import INITIAL_WINDOW, MAX_WINDOW

KIB: Final = 1024
MIB: Final = 1024 * 1024
FILLING: Final = 64 * KIB - 256
"""Data that goes into one message beside its headers. A buffer of a whole 64 KiB went out as one message and another
of 12 bytes, which cost as much as the first (benchmarks/NOTES.md)."""
AHEAD: Final = 2 * FILLING
"""How far a stream's sender may run ahead of the wire, and so what a pump reads at once: with less, writer and pump
wait for each other after each message (benchmarks/NOTES.md). Both together hold no more than 256 KiB of a stream."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Events allowed: `per_second` on average, `burst` at once."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits and timeouts of one session. Sizes in bytes, times in seconds. Defaults: yamux.md §9 and §12.

    The defaults suit the side that trusts nobody (the daemon); `for_agent` suits the side that serves one server.
    """

    # Streams
    max_inbound_streams: int = 256  # open at once; more are answered with RST
    max_outbound_streams: int = 4096  # open or waiting to open; more are refused to the caller
    accept_backlog: int = 256  # inbound, not yet accepted by the application
    max_unacked: int = 256  # outbound SYNs without ACK; more opens wait in order
    # Windows and buffers
    receive_window: int = INITIAL_WINDOW  # granted from the start; never less than the protocol's own
    max_receive_window: int = MIB  # auto-tuning stops here; equal to receive_window turns it off
    send_buffer: int = AHEAD  # bytes that a stream's sender may run ahead of the wire
    soft_buffered: int = 16 * MIB  # unread bytes of the session above which no window grows
    hard_buffered: int = 64 * MIB  # … above which the stream that holds most is reset
    max_batch: int = 64 * KIB  # bytes per WebSocket message
    quantum: int = 16 * KIB  # bytes of one stream before the next has its turn
    # Bulk beside interactive streams (`classes`): bytes that the peer may have under way
    bulk_window: int = 128 * KIB  # for a bulk stream; 0 holds no credit back
    bulk_budget: int = 256 * KIB  # for all (a near peer: a quarter), or what bulk_speed fills in a round trip …
    bulk_speed: int = 16 * MIB  # … in bytes a second: more than that on a long line is the price of a short queue
    bulk_window_least: int = 32 * KIB  # never less for one (a near peer: a quarter)
    crowded_seconds: float = 2.0  # after an interactive stream last spoke
    # Rates
    syn_rate: Rate = Rate(200, 512)  # more: RST; as many again: the session ends
    rapid_reset_rate: Rate = Rate(50, 200)  # peer's RST of its own streams younger than rapid_reset_age
    rapid_reset_age: float = 1.0
    ping_rate: Rate = Rate(10, 32)
    glitch_rate: Rate = Rate(100, 1000)  # frames that are useless, duplicate or for streams nobody knows
    late_ids: int = 1024  # closed streams remembered, so that frames still under way are no glitch
    max_pending_resets: int = 1024  # RSTs for refused streams that wait to be written
    # Times
    open_timeout: float = 10.0  # from open to ACK, queueing included; bytes sent at a live peer are another's to judge
    open_probe: float = 2.0  # an open without ACK and no byte from the peer for so long: ask whether it lives
    accept_timeout: float = 10.0  # a Go opener kills its session after 75 s without ACK
    close_timeout: float = 300.0  # without progress after our half-close
    flush_stuck: float = 30.0  # without progress of what goes before a reset that is passed on
    partial_frame_timeout: float = 30.0
    write_timeout: float = 30.0  # without progress of the transport
    ping_idle: float = 15.0  # without an inbound byte
    liveness_timeout: float = 40.0  # without an inbound byte
    rtt_interval: float = 30.0  # between measurements while streams are busy
    flush_timeout: float = 1.0  # for the last GoAway

    def __post_init__(self) -> None:
        if not INITIAL_WINDOW <= self.receive_window <= self.max_receive_window <= MAX_WINDOW:
            raise ValueError("need 262144 <= receive_window <= max_receive_window < 2**32")
        if self.max_batch < 64 or self.quantum < 1 or self.send_buffer < 1:
            raise ValueError("max_batch must be at least 64, quantum and send_buffer at least 1")
        if self.max_unacked < 1 or self.accept_backlog < 1 or self.late_ids < 1:
            raise ValueError("max_unacked, accept_backlog and late_ids must be at least 1")
        if self.bulk_window and not 8 <= self.bulk_window_least <= self.bulk_window <= INITIAL_WINDOW:
            raise ValueError("need 8 <= bulk_window_least <= bulk_window <= 262144, or no bulk_window")
        if not 0 < self.soft_buffered <= self.hard_buffered:
            raise ValueError("need 0 < soft_buffered <= hard_buffered")
        if not 0 < self.ping_idle < self.liveness_timeout:
            raise ValueError("need 0 < ping_idle < liveness_timeout")

    @classmethod
    def for_agent(cls, *, max_streams: int = 4096) -> "SessionConfig":
        """Limits of an agent: every stream is the server's, opened and reset as fast as its clients come and go."""
        return replace(
            cls(),
            max_inbound_streams=max_streams,
            max_outbound_streams=max_streams,
            syn_rate=Rate(20_000, 20_000),
            rapid_reset_rate=Rate(20_000, 20_000),
            send_buffer=2 * AHEAD,  # its uplink is the slow side, and its pump reads as much
            bulk_window=0,  # the daemon chooses itself whose bytes go first
        )


class TokenBucket:
    """`Rate` as a bucket: full at the start, `take` is False when it is empty."""

    __slots__ = ("_burst", "_level", "_per_second", "_seen")

    def __init__(self, rate: Rate, now: float) -> None:
        self._per_second = rate.per_second
        self._burst = float(rate.burst)
        self._level = float(rate.burst)
        self._seen = now

    def take(self, now: float) -> bool:
        """Count one event at `now` (monotonic seconds); False if it exceeds the rate."""
        elapsed = now - self._seen
        if elapsed > 0:
            self._seen = now
            self._level = min(self._burst, self._level + elapsed * self._per_second)
        if self._level < 1:
            return False
        self._level -= 1
        return True
