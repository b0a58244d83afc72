"""An upgraded connection: bytes both ways as they are, in one thread, until both sides have ended (tunnel.md).

It knows two sockets and what waits for each; what the bytes mean is nobody's business here. Memory is bounded: each
direction holds at most `HIGH_WATER` and one read. A half-close passes through; a reset on one side is one on the other.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from typing import Final

from apps.tunnels.forwarder_relay import HIGH_WATER, READ_SMALL, Outbox
from apps.tunnels.forwarder_stream import ClientLeft, Control, Ended
from tunnel.http import AnswerCut, Buffer

TICK: Final = 1.0
"""Seconds after which a wait looks whether the connection was ended from outside: with the watchdog's 2 s that makes
3 s at most, at a quarter of the wake-ups of a plain exchange, for these are many and quiet."""
HALF_CLOSED_SECONDS: Final = 60.0
"""Without a byte, once one side has ended: the other usually ends too, and a thread waits for it."""
_READ: Final = READ_SMALL
_GONE: Final = select.POLLERR | select.POLLNVAL
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""A client that vanished without a word is noticed after two minutes, not when the idle time of an hour is over."""


class _Flow:
    """One direction."""

    __slots__ = ("bytes", "ended", "out", "over")

    def __init__(self, out: Outbox) -> None:
        self.out = out
        self.bytes = 0
        self.ended = False
        """The side that sends has ended."""
        self.over = False
        """And the side that receives was told so, after the last byte."""

    @property
    def reads(self) -> bool:
        return not self.ended and self.out.size < HIGH_WATER


class Switch:
    """Joins the client's socket and the stream's; neither blocks. `run` once."""

    def __init__(
        self, client: socket.socket, box: socket.socket, control: Control, *, idle_seconds: float, to_client: Outbox
    ) -> None:
        self._client = client
        self._box = box
        self._control = control
        self._idle = idle_seconds
        self._up = _Flow(Outbox())
        self._down = _Flow(to_client)
        self._poll = select.poll()
        self._registered: dict[int, int] = {}
        self._moved_at = time.monotonic()
        self._box_deaf = False  # the stream takes no more
        self._box_reset = False

    def __repr__(self) -> str:
        return f"<Switch up={self._up.bytes} ended={self._up.ended} down={self._down.bytes} ended={self._down.ended}>"

    @property
    def bytes_up(self) -> int:
        """Bytes read from the client."""
        return self._up.bytes

    @property
    def bytes_down(self) -> int:
        """Bytes read from the box."""
        return self._down.bytes

    def begin(self, from_client: Buffer, from_box: Iterable[Buffer]) -> None:
        """What was read of either side already, behind the heads."""
        self._up.out.put(from_client)
        self._up.bytes += len(from_client)
        for piece in from_box:
            self._down.out.put(piece)
            self._down.bytes += len(piece)

    def run(self) -> None:
        """Return when both sides have ended. Raises ClientLeft (a reset), AnswerCut (a reset, or idle), Ended."""
        for level, option, value in _KEEPALIVE:
            self._set(level, option, value)
        self._deliver_down()
        self._deliver_up()
        while not (self._up.over and self._down.over):
            happened = self._wait()
            client, box = happened.get(self._client.fileno(), 0), happened.get(self._box.fileno(), 0)
            if client & _GONE:
                raise ClientLeft
            if client & (select.POLLIN | select.POLLHUP):
                self._read_client()
            if box & (select.POLLIN | select.POLLHUP | _GONE):
                self._read_box()
            self._deliver_up()
            self._deliver_down()
            if self._box_reset and not self._down.out.size:  # what the box said before has been passed on
                raise AnswerCut("AGENT_BAD_RESPONSE", "the stream was reset")

    def _set(self, level: int, option: int, value: int) -> None:
        try:
            self._client.setsockopt(level, option, value)
        except OSError as error:
            raise ClientLeft from error

    # --- waiting ------------------------------------------------------------------------------------------------------
    def _wait(self) -> dict[int, int]:
        """What happened on which descriptor. Raises Ended, AnswerCut."""
        self._watch(self._client, reads=self._up.reads, writes=self._down.out.size > 0)
        self._watch(self._box, reads=self._down.reads and not self._box_reset, writes=self._up.out.size > 0)
        quiet = HALF_CLOSED_SECONDS if self._up.ended or self._down.ended else self._idle
        deadline = self._moved_at + min(quiet, self._idle)
        while True:
            if self._control.ended:
                raise Ended(self._control.ended)
            left = deadline - time.monotonic()
            found = dict(self._poll.poll(max(0.0, min(left, TICK)) * 1000))
            if found:
                return found
            if left <= 0:
                raise AnswerCut("TUNNEL_TIMEOUT", "no byte within the limit")

    def _watch(self, sock: socket.socket, *, reads: bool, writes: bool) -> None:
        """A side that nothing is wanted of is not looked at: its hang-up would end each wait at once."""
        wanted = (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0)
        number = sock.fileno()
        known = self._registered.get(number, 0)
        if wanted == known:
            return
        if wanted:
            self._poll.register(number, wanted)
        else:
            self._poll.unregister(number)
        self._registered[number] = wanted

    # --- moving -------------------------------------------------------------------------------------------------------
    def _read_client(self) -> None:
        try:
            self._take(self._client, self._up)
        except OSError as error:
            raise ClientLeft from error

    def _read_box(self) -> None:
        try:
            self._take(self._box, self._down)
        except OSError:
            self._box_reset = True
        if self._down.ended and self._box_deaf:  # a failed write takes the reset's error away: this is no end
            self._down.ended, self._box_reset = False, True

    def _take(self, sock: socket.socket, flow: _Flow) -> None:
        if not flow.reads:
            return
        try:
            data = sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        self._moved_at = time.monotonic()
        if data:
            flow.bytes += len(data)
            flow.out.put(data)
        else:
            flow.ended = True

    def _deliver_up(self) -> None:
        try:
            self._deliver(self._up, self._box)
        except OSError:
            self._box_deaf = True  # how it ended is read, behind what the box said before
            self._up.out.clear()

    def _deliver_down(self) -> None:
        try:
            self._deliver(self._down, self._client)
        except OSError as error:
            raise ClientLeft from error

    def _deliver(self, flow: _Flow, sock: socket.socket) -> None:
        if flow.out.size and flow.out.flush(sock):
            self._moved_at = time.monotonic()
        if flow.ended and not flow.out.size and not flow.over:
            flow.over = True
            sock.shutdown(socket.SHUT_WR)
