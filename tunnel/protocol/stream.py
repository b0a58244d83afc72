"""What is known of one stream: state, windows, buffers and what is still to be said about it.

Only data: the table in `states` changes the state, `core` and its neighbours the rest. Knows no other stream.
"""

from enum import IntEnum
from typing import Any, Final

from tunnel.protocol.errors import Fault
from tunnel.protocol.windows import ReceiveWindow, SendWindow

# A bit of `MuxStream.pending` beside the flags SYN and ACK.
CREDIT: Final = 0x100
STEP: Final = 64 * 1024
"""Bytes of a stream between two looks at how fast it is (`classes`)."""


class State(IntEnum):
    """Where a stream is in its life (yamux.md §5). Of ints, since a plain Enum hashes in Python code."""

    SYN_SENT = 1
    SYN_RECEIVED = 2
    OPEN = 3
    LOCAL_CLOSED = 4  # we sent FIN
    REMOTE_CLOSED = 5  # the peer did
    GONE = 6


class MuxStream:
    """One stream of a session. Read its attributes; change it through `Session` only.

    `context` belongs to the caller (the shell hangs its own object there). `touched` is cleared by whoever takes the
    list of touched streams. `fault` is None as long as nothing broke. `read_eof` is True once the peer's FIN came;
    unread bytes may still lie in `received`, and behind a reset of the peer's as well: they come before the fault.
    """

    __slots__ = (
        "ack_owed",
        "ack_seen",
        "acked",
        "bulk",
        "context",
        "deficit",
        "discarding",
        "fault",
        "fin_wanted",
        "in_control",
        "in_ring",
        "inbound",
        "last_progress",
        "moved",
        "opened_at",
        "pending",
        "plain_receive",
        "read_eof",
        "receive_window",
        "received",
        "reset_wanted",
        "send_blocked",
        "send_buffer",
        "send_window",
        "stamps",
        "state",
        "stream_id",
        "syn_sent",
        "touched",
        "window_stalled",
    )

    def __init__(self, stream_id: int, *, inbound: bool, now: float) -> None:
        self.stream_id = stream_id
        self.inbound = inbound
        self.state = State.SYN_RECEIVED if inbound else State.SYN_SENT
        self.plain_receive = False
        # ACK bits, orthogonal to the state.
        self.ack_owed = inbound  # inbound: no ACK sent yet
        self.acked = inbound  # outbound: the peer answered, by ACK or by any other frame
        self.ack_seen = False  # outbound: the explicit ACK came
        self.syn_sent = inbound
        # What the writer still has to say: SYN, ACK (frame flags) and credit, merged until it is written.
        self.pending = 0
        self.fin_wanted = False
        self.reset_wanted = False  # RST follows what is queued, and the FIN if one was wanted
        self.in_control = False
        self.in_ring = False
        self.deficit = 0
        self.window_stalled = False
        # Its class, and what decides it: bytes since the last step, and when the latest steps were reached.
        self.bulk = False
        self.moved = 0
        self.stamps: tuple[float, ...] = ()
        self.send_window = SendWindow()
        self.receive_window = ReceiveWindow(now)
        self.send_buffer = bytearray()
        self.send_blocked = False  # a sender waits until the buffer has room again
        self.received = bytearray()
        self.read_eof = False
        self.discarding = False  # closed by the application: what still comes is refused
        self.fault: Fault | None = None
        self.opened_at = now
        self.last_progress = now
        self.touched = False
        self.context: Any = None

    @property
    def gone(self) -> bool:
        """True when nothing of this stream will be sent or received any more."""
        return self.state is State.GONE

    @property
    def writable(self) -> bool:
        """True while `Session.send` accepts bytes, if only later."""
        return self.state is not State.GONE and not (self.fin_wanted or self.reset_wanted)

    @property
    def owes_fin(self) -> bool:
        """True if the application has ended its side and the FIN has not gone out."""
        return self.fin_wanted and self.state is not State.LOCAL_CLOSED

    @property
    def ready_to_send(self) -> bool:
        """True if the writer could put bytes or the FIN of this stream on the wire now."""
        if not self.syn_sent or self.state is State.GONE:
            return False
        if self.send_buffer:
            return self.send_window.available > 0
        return self.reset_wanted or self.owes_fin

    def __repr__(self) -> str:
        bits = "".join(
            letter
            for letter, on in (("a", self.acked), ("o", self.ack_owed), ("f", self.fin_wanted), ("e", self.read_eof))
            if on
        )
        fault = f" {self.fault.name}" if self.fault else ""
        return (
            f"<MuxStream {self.stream_id} {self.state.name} {bits or '-'} send={len(self.send_buffer)}"
            f"/{self.send_window.available} received={len(self.received)}/{self.receive_window.remaining}{fault}>"
        )
