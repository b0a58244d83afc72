"""The bytes of one exchange between a client's socket and a stream, both ways at once, in one thread.

It drives `tunnel.http.Exchange`, which says what the bytes mean; here is only who is waited for, how long, and how much
is held. Memory is bounded: each direction holds at most `HIGH_WATER` and one read.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Protocol

from apps.tunnels.forwarder_stream import BoxStream, ClientLeft, Watch
from tunnel.http import (
    CHUNKED,
    CONTINUE,
    AnswerCut,
    AnswerHead,
    BodyReader,
    Buffer,
    Exchange,
    ExchangeError,
    Field,
    FramingError,
    Limits,
    ProxyError,
)

HIGH_WATER: Final = 256 * 1024
"""Bytes held for a side that takes them slowly; at this much the other side is no longer read."""
READ_SMALL: Final = 64 * 1024
READ_LARGE: Final = 256 * 1024
KEPT_MAX: Final = 64 * 1024
"""Bytes of a request's body that are kept to be given again, where another device may take the request."""
_PIECES: Final = 64  # buffers in one sendmsg, far below IOV_MAX


class Tap(Protocol):
    """Looks at an answer's body as it passes."""

    def head(self, answer: AnswerHead) -> None:
        """The head is known."""

    def feed(self, piece: Buffer) -> None:
        """The next body bytes."""

    def complete(self) -> None:
        """The whole body was fed; called before its end goes to the client."""


class Outbox:
    """Bytes that wait for a socket which does not block."""

    __slots__ = ("_pieces", "sent", "size")

    def __init__(self) -> None:
        self._pieces: deque[Buffer] = deque()
        self.size = 0
        self.sent = 0

    def put(self, *pieces: Buffer) -> None:
        """Add them at the end, uncopied."""
        for piece in pieces:
            if piece:
                self._pieces.append(piece)
                self.size += len(piece)

    def clear(self) -> None:
        """Forget what waits."""
        self._pieces.clear()
        self.size = 0

    def flush(self, sock: socket.socket) -> int:
        """Send as much as the socket takes; the number of bytes. Raises OSError of a connection that is gone."""
        total = 0
        while self._pieces:
            batch = [self._pieces[index] for index in range(min(len(self._pieces), _PIECES))]
            try:
                count = sock.sendmsg(batch)
            except (BlockingIOError, InterruptedError):
                break
            total += count
            self._drop(count)
        self.size -= total
        self.sent += total
        return total

    def _drop(self, count: int) -> None:
        while count:
            first = self._pieces[0]
            if len(first) > count:
                self._pieces[0] = memoryview(first)[count:]
                return
            count -= len(first)
            self._pieces.popleft()


class Relay:
    """One exchange on two sockets. `early` are the client's raw bytes that were read behind its request's head."""

    def __init__(
        self,
        exchange: Exchange,
        client: socket.socket,
        early: bytes,
        watch: Watch,
        limits: Limits,
        tap: Tap | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.exchange = exchange
        self._kept: list[Buffer] | None = [] if keep else None
        self._client = client
        self._watch = watch
        self._limits = limits
        self._tap = tap
        self._box: BoxStream | None = None
        self._to_box = Outbox()
        self._to_client = Outbox()
        self._reader: BodyReader = exchange.request.body_reader(limits)
        self._early = early
        self._held: list[Buffer] = []
        self._box_deaf = False
        self._unsent = False
        self._continued = not exchange.request.expects_continue
        self._body_at = self._box_at = time.monotonic()
        self.bytes_up = 0
        self.bytes_down = 0

    # --- what the caller may ask --------------------------------------------------------------------------------------
    @property
    def rest(self) -> bytes:
        """Raw bytes of the client that came behind this request's body."""
        return bytes(self._reader.rest) if self._reader.done and self._reader.rest else self._early

    @property
    def request_read(self) -> bool:
        """Whether the client's connection stands at the beginning of its next request."""
        return self._reader.done

    @property
    def sent(self) -> int:
        """Bytes written to the client."""
        return self._to_client.sent

    @property
    def clean(self) -> bool:
        """Whether the stream may carry another exchange: this one is over on both sides, to the last byte."""
        return self.exchange.reusable and not self._unsent and not self._box_deaf

    @property
    def kept(self) -> bool:
        """Whether all that was read of the request's body can be given again."""
        return self._kept is not None

    # --- one attempt --------------------------------------------------------------------------------------------------
    def to_head(self, box: BoxStream) -> AnswerHead:
        """Send the request, and go on until the answer's head is known.

        Raises ProxyError, ClientLeft, Ended. After `Exchange.may_retry` it may be called again with another stream.
        """
        self._box = box
        self._box_deaf = False
        self._to_box.clear()
        self._watch.set_box(box.sock)
        self._to_box.put(self.exchange.start())
        self._box_at = self._body_at = time.monotonic()
        if self.bytes_up:
            self._give_again()
        if self._early and not self._reader.done:
            early, self._early = self._early, b""
            self._feed(early)
        if box.early:
            early, box.early = box.early, b""
            self._held = self.exchange.receive(early)
        self._flush_box()
        while self.exchange.answer is None:
            self._turn()
        if self._tap is not None:
            self._tap.head(self.exchange.answer)
        self._tapped(self._held)
        return self.exchange.answer

    def to_end(self, extra: list[Field]) -> None:
        """Write the answer's head, with `extra` fields of ours, and go on until the client has the whole answer.

        Raises AnswerCut, ClientLeft, Ended: the client's connection must be reset then.
        """
        exchange = self.exchange
        if not self._continued:  # the answer came first: the client must not be asked for its body any more
            self._continued = True
        head = exchange.client_head(extra)
        self._to_client.put(head, *exchange.client_body(self._held))
        self._held = []
        self._body_at = time.monotonic()
        ended = False
        while True:
            if exchange.complete and not ended:
                ended = True
                self._leave_box()
                if self._tap is not None:
                    self._tap.complete()
                self._to_client.put(exchange.client_end())
            if self._to_client.size and self._flush_client():
                continue
            if ended and not self._to_client.size:
                return
            self._turn()

    def take_over(self, extra: list[Field]) -> tuple[Outbox, bytes, list[Buffer]]:
        """For an answer that switched protocols: its head as it waits for the client, with `extra` fields of ours, and
        what was read of the client and of the box behind their heads. The relay is done."""
        self._watch.set_box(None)
        self._to_client.put(self.exchange.client_head(extra))
        held, self._held = self._held, []
        return self._to_client, self.rest, held

    def _leave_box(self) -> None:
        """The answer is whole: nothing of the stream is waited for any more, be its end or the rest of an upload."""
        self._watch.set_box(None)
        self._unsent = self._to_box.size > 0
        self._to_box.clear()

    # --- one turn of the loop -----------------------------------------------------------------------------------------
    def _turn(self) -> None:
        box_events, client_events = self._interests()
        deadline = self._deadline()
        box, client = self._watch.wait(box_events, client_events, deadline)
        if not box and not client:
            raise self._timed_out()
        if client & select.POLLIN:
            self._read_client()
        if client & select.POLLOUT:
            self._flush_client()
        if box & select.POLLOUT:
            self._flush_box()
        if box & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._read_box()

    def _interests(self) -> tuple[int, int]:
        exchange = self.exchange
        box = client = 0
        if not exchange.complete and self._to_client.size < HIGH_WATER:
            box |= select.POLLIN
        if self._to_box.size:
            box |= select.POLLOUT
        if self._to_client.size:
            client |= select.POLLOUT
        if self._wants_body and not exchange.complete:
            client |= select.POLLIN
        return box, client

    @property
    def _wants_body(self) -> bool:
        return not self._reader.done and not self._box_deaf and self._to_box.size < HIGH_WATER

    def _deadline(self) -> float:
        if self.exchange.answer is not None or not self._waits_for_box:
            return max(self._body_at, self._box_at) + self._limits.idle_seconds
        return self._box_at + self._limits.head_seconds

    @property
    def _waits_for_box(self) -> bool:
        return self._reader.done or self._to_box.size > 0 or self._box_deaf

    def _timed_out(self) -> ExchangeError:
        if self.exchange.answer is None and not self._waits_for_box:
            return ProxyError("REQUEST_TIMEOUT", "the client sends no more of its body")
        return self.exchange.failure("TUNNEL_TIMEOUT", "no byte within the limit")

    # --- from the client to the box -----------------------------------------------------------------------------------
    def _read_client(self) -> None:
        try:
            data = self._client.recv(READ_LARGE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise ClientLeft from error
        if not data:
            raise ClientLeft
        self._feed(data)
        self._flush_box()

    def _feed(self, data: bytes) -> None:
        self._body_at = time.monotonic()
        exchange = self.exchange
        try:
            pieces = self._reader.feed(data)
        except FramingError as error:
            raise self._fault("BAD_REQUEST", str(error)) from error
        for piece in pieces:
            self.bytes_up += len(piece)
            if self._kept is not None:
                self._kept = [*self._kept, bytes(piece)] if self.bytes_up <= KEPT_MAX else None
            try:
                self._to_box.put(*exchange.send_body(piece))
            except ProxyError as error:
                raise self._fault(error.code, str(error), error.details) from error
        if self._reader.done and exchange.request.body_length == CHUNKED:
            self._to_box.put(exchange.end_body())

    def _give_again(self) -> None:
        """What was read of the body goes to the stream of this attempt too."""
        for piece in self._kept or ():
            self._to_box.put(*self.exchange.send_body(piece))
        if self._reader.done and self.exchange.request.body_length == CHUNKED:
            self._to_box.put(self.exchange.end_body())

    def _fault(self, code: str, detail: str, details: Mapping[str, Any] | None = None) -> ExchangeError:
        """A fault of the client's body: told while nothing of an answer went out, else the exchange is cut."""
        if self.exchange.answer is not None:
            return AnswerCut(code, detail)
        return ProxyError(code, detail, details=details)

    def _flush_box(self) -> None:
        if self._box is None or not self._to_box.size:
            self._ask_for_body()
            return
        try:
            if self._to_box.flush(self._box.sock):
                self._box_at = time.monotonic()
        except OSError:
            # The box takes no more; it may have answered before it closed, so what it said is still read.
            self._box_deaf = True
            self._to_box.clear()
            return
        self._ask_for_body()

    def _ask_for_body(self) -> None:
        """Tell a client that waits for it to send its body, once the head is on its way to a box."""
        if not self._continued:
            self._continued = True
            if not self._reader.done and not self.bytes_up and self.exchange.answer is None:
                self._to_client.put(CONTINUE)
                self._flush_client()

    # --- from the box to the client -----------------------------------------------------------------------------------
    def _read_box(self) -> None:
        exchange = self.exchange
        if self._box is None or exchange.complete:
            return
        size = READ_SMALL if exchange.answer is None else READ_LARGE
        try:
            data = self._box.sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise exchange.reset_by_box() from error
        answered = exchange.answer is not None
        if not data:
            if self._box_deaf:  # a failed send takes the reset's error away, so this may be one: no end of a body
                raise exchange.reset_by_box()
            exchange.receive_end()
            return
        interim = exchange.interim
        pieces = exchange.receive(data)
        self._body_at = time.monotonic()
        if exchange.interim > interim:  # the box is at work, and says so
            self._box_at = self._body_at
        if not answered:
            self._held += pieces
            return
        self._tapped(pieces)
        self._to_client.put(*exchange.client_body(pieces))
        if not exchange.complete:  # the last bytes wait for the tap's word
            self._flush_client()

    def _tapped(self, pieces: list[Buffer]) -> None:
        for piece in pieces:
            self.bytes_down += len(piece)
            if self._tap is not None:
                self._tap.feed(piece)

    def _flush_client(self) -> int:
        try:
            count = self._to_client.flush(self._client)
        except OSError as error:
            raise ClientLeft from error
        if count:
            self._body_at = time.monotonic()
        return count
