"""Flow control of one stream, both directions, as plain arithmetic. Knows no frames, states or queues.

Credit returns when the application consumes, never on receipt, and only in steps of half the window, as
hashicorp/yamux does (yamux.md §6).
"""

from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.frames import INITIAL_WINDOW, MAX_WINDOW


class SendWindow:
    """How many payload bytes the peer allows us to send now (`available`)."""

    __slots__ = ("available",)

    def __init__(self) -> None:
        self.available = INITIAL_WINDOW

    def grow(self, credit: int) -> None:
        """Add the peer's credit. Raises RemoteProtocolError past 2**32 - 1."""
        available = self.available + credit
        if available > MAX_WINDOW:
            raise RemoteProtocolError(f"send window would be {available} bytes")
        self.available = available

    def spend(self, length: int) -> None:
        """`length` payload bytes were put on the wire; never more than `available`."""
        self.available -= length


class ReceiveWindow:
    """What the peer may still send (`remaining`) and what was consumed but not yet credited (`owed`).

    `size` is the whole window: size = remaining + received and unread + owed, at any time. Of what is owed, `withheld`
    stays owed, so that the peer has a smaller window for the time being; `threshold` is that and half of the rest.
    So a peer that used up what it had, of which all was consumed, is always owed at least half of its window.
    """

    __slots__ = ("credited_at", "owed", "remaining", "size", "threshold", "withheld")

    def __init__(self, now: float) -> None:
        self.size = INITIAL_WINDOW
        self.threshold = INITIAL_WINDOW // 2
        self.remaining = INITIAL_WINDOW
        self.owed = 0
        self.withheld = 0
        self.credited_at = now

    def receive(self, length: int) -> None:
        """A header announced `length` bytes. Raises RemoteProtocolError if the peer sent more than it was allowed."""
        remaining = self.remaining - length
        if remaining < 0:
            raise RemoteProtocolError(f"{-remaining} bytes beyond the receive window")
        self.remaining = remaining

    def consume(self, length: int) -> bool:
        """The application took `length` bytes; True when it is time to tell the peer."""
        self.owed += length
        return self.owed >= self.threshold

    def announce(self, size: int) -> int:
        """Credit to send with SYN or ACK so that the window becomes `size` bytes; 0 for the protocol's own."""
        extra = size - self.size
        if extra > 0:
            self._resize(size)
            self.remaining += extra
            return extra
        return 0

    def take_credit(self, now: float, rtt: float | None, limit: int) -> int:
        """Credit to send now, in bytes. With a measured `rtt` (seconds) the window may double, up to `limit`.

        It doubles when half of it was used up faster than two round trips, scaled with its size: an unscaled bound
        stops growing at twice the initial window (libp2p/go-yamux #136).
        """
        if rtt is not None and self.size < limit and now - self.credited_at < 2 * rtt * self.size / INITIAL_WINDOW:
            size = min(self.size * 2, limit)
            self.owed += size - self.size
            self._resize(size)
        credit = max(0, self.owed - self.withheld)
        self.owed -= credit
        self.remaining += credit
        self.credited_at = now
        return credit

    def withhold(self, window: int | None) -> bool:
        """Behave as a window of `window` bytes (at least 2), None: of the full size. True when credit is due by that.

        What the peer was granted before stays granted: it shrinks as the peer uses it.
        """
        self.withheld = 0 if window is None else max(0, self.size - window)
        self._resize(self.size)
        return self.owed >= self.threshold

    def _resize(self, size: int) -> None:
        self.size = size
        self.threshold = self.withheld + (size - self.withheld) // 2
