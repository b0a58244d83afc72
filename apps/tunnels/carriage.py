"""The bytes of one exchange, between a client's socket and a daemon's connection: moved, and not understood.

It neither waits nor knows time: whoever drives it asks what it waits for and tells it what happened, a thread by `poll`
for a second, then the loop that all long exchanges of the process share. It holds at most one read in each direction.
"""

from __future__ import annotations

import re
import select
import socket
from collections import deque
from typing import Final

import orjson

from apps.tunnels.node_connections import NodeConnection
from tunnel.contract import (
    ABORT,
    ACCEPTED,
    DATA,
    END,
    EOF,
    ExchangeEnd,
    RecordError,
    begin_record,
    record,
    record_header,
)
from tunnel.http import CONTINUE, BodyReader, FramingError

READ: Final = 64 * 1024
HELD_MAX: Final = 64 * 1024
"""Bytes of a request's body that are kept to be given again, where another device may take the request."""
READ_HANGUP: Final = getattr(select, "POLLRDHUP", 0)
"""Linux tells a half-close without a read."""
_ENDLESS: Final = re.compile(rb"\r\ncontent-type:[ \t]*(?:multipart/x-mixed-replace|text/event-stream)", re.IGNORECASE)
_BROKEN: Final = select.POLLERR | select.POLLNVAL
NOTHING: Final = -1
"""The interest in a socket that is not to be watched at all: its hang-up would be told again and again."""
_PIECES: Final = 64  # buffers in one sendmsg, far below IOV_MAX
_COPY_MAX: Final = (1 << 20) + READ


class Outbox:
    """Bytes that wait for a socket which does not block."""

    __slots__ = ("_pieces", "sent", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()
        self.size = 0
        self.sent = 0

    def put(self, piece: bytes) -> None:
        """Add it at the end, uncopied."""
        if piece:
            self._pieces.append(piece)
            self.size += len(piece)

    def clear(self) -> None:
        """Forget what waits."""
        self._pieces.clear()
        self.size = 0

    def flush(self, sock: socket.socket) -> None:
        """Send as much as the socket takes. Raises OSError of a connection that is gone."""
        while self._pieces:
            try:
                if len(self._pieces) == 1:
                    count = sock.send(self._pieces[0])
                else:
                    count = sock.sendmsg([self._pieces[index] for index in range(min(len(self._pieces), _PIECES))])
            except (BlockingIOError, InterruptedError):
                return
            self.size -= count
            self.sent += count
            self._drop(count)

    def _drop(self, count: int) -> None:
        while count:
            first = self._pieces[0]
            if len(first) > count:
                self._pieces[0] = memoryview(first)[count:]
                return
            count -= len(first)
            self._pieces.popleft()


class Copy:
    """Keeps what goes to the client, up to a megabyte, and the last of it back until its end is known."""

    __slots__ = ("bytes", "whole")

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.whole = True

    def add(self, piece: bytes) -> None:
        """The next bytes of the answer, its head included."""
        if self.whole and len(self.bytes) + len(piece) <= _COPY_MAX:
            self.bytes += piece
        else:
            self.whole = False
            self.bytes.clear()


class Carriage:
    """One exchange of a client, over one connection to a daemon after another.

    Args:
        early: raw bytes that were read behind the client's head.
        body: where the request's body ends; None: all that comes is passed on (an upgrade).
        copy: takes a copy of the answer; then the answer's last bytes wait until `release`.
    """

    def __init__(
        self, client: socket.socket, early: bytes, body: BodyReader | None, *, copy: Copy | None = None
    ) -> None:
        self.client = client
        self.node: NodeConnection | None = None
        self.end: ExchangeEnd | None = None
        """The daemon's word on how it ended."""
        self.accepted = False
        """A box may have seen something of the request, of this attempt or one before."""
        self.left = False
        """The client is gone."""
        self.lost = False
        """The daemon's connection ended without an end."""
        self.endless = False
        """The answer is one without an end, by its type."""
        self.rest = b""
        """Raw bytes of the client behind this request."""
        self._copy = copy
        self._kept_back = b""
        self._body = body
        self._to_node = Outbox()
        self._to_client = Outbox()
        self._begun: list[bytes] | None = []  # what came of the body, while it can be given again
        self._begun_size = 0
        self._answered = 0  # bytes of a final answer
        self._continued = False  # the client was asked to go on, which is done once
        self._client_ended = False
        self._box_ended = False
        self._shut = False  # towards the client: from here on its end looks like a hang-up
        self._early = early

    def __repr__(self) -> str:
        state = "ended" if self.end else "left" if self.left else "lost" if self.lost else "running"
        return f"<Carriage {state} answered={self._answered} {self.node!r}>"

    # --- what the driver may ask --------------------------------------------------------------------------------------
    @property
    def over(self) -> bool:
        """Nothing is left to move."""
        return self.left or self.lost or (self.end is not None and not self._to_client.size and not self._kept_back)

    @property
    def waits_for_release(self) -> bool:
        """The copy is whole, or there will be none: its reader comes before the client has the last of it."""
        return self.end is not None and bool(self._kept_back) and not self.left

    @property
    def sent(self) -> int:
        """Bytes that the client's kernel connection took."""
        return self._to_client.sent

    @property
    def answered(self) -> bool:
        """Something of a final answer went to the client."""
        return self._answered > 0

    @property
    def request_read(self) -> bool:
        """The client's connection stands at the beginning of its next request."""
        return self._body is not None and self._body.done

    @property
    def may_begin_again(self) -> bool:
        """Whether all that was read of the request's body can be given again."""
        return self._begun is not None and not self.answered

    # --- an attempt ---------------------------------------------------------------------------------------------------
    def begin(self, node: NodeConnection, call: bytes, head: bytes) -> None:
        """Send the call on this connection, and what was read of the body. Faults show in `left` and `lost`."""
        self.node = node
        self.end, self.lost = None, False
        self._to_node.clear()
        self._to_node.put(begin_record(call, head))
        node.uses += 1
        for piece in self._begun or ():
            self._put(piece)
        if self._early:
            early, self._early = self._early, b""
            self._from_client(early)
        if self._client_ended:
            self._to_node.put(record(EOF))
        self._flush_node()

    def interests(self) -> tuple[int, int]:
        """What to poll for: of the client and of the daemon, NOTHING for one that is not to be watched."""
        client = select.POLLOUT if self._to_client.size else 0
        if self._client_ended and self._shut:
            client = NOTHING
        elif not self._wants_client:
            if not self._client_ended:
                client |= READ_HANGUP
        elif self._to_node.size < READ:
            client |= select.POLLIN
        if self.end is not None:
            return client, NOTHING
        node = 0 if self._to_client.size else select.POLLIN
        if self._to_node.size:
            node |= select.POLLOUT
        return client, node

    @property
    def _wants_client(self) -> bool:
        return not self._client_ended and self.end is None and (self._body is None or not self._body.done)

    def turn(self, client: int, node: int) -> None:
        """Move what can be moved after `poll` told these events."""
        if node & select.POLLOUT:
            self._flush_node()
        if node & (select.POLLIN | select.POLLHUP | _BROKEN) and self.end is None:
            self._read_node()
        if client & select.POLLOUT:
            self._flush_client()
        if client & _BROKEN or (client & select.POLLHUP and not self._shut):
            self.left = True
        elif client & (select.POLLIN | select.POLLHUP | READ_HANGUP):
            self._read_client(client)

    def abort(self, code: str = "") -> None:
        """Have the daemon end it. The connection cannot be used after that."""
        node, self.node = self.node, None
        if node is not None:
            try:
                node.sock.send(record(ABORT, code.encode("ascii")))
            except OSError:
                pass  # its end says the same
            node.close()

    def take_node(self) -> NodeConnection | None:
        """The daemon's connection, if it may carry another exchange."""
        node, self.node = self.node, None
        if node is None:
            return None
        if self.end is not None and not self._to_node.size:
            return node
        node.close()
        return None

    def release(self) -> None:
        """Send what was kept back until whoever reads the copy was done."""
        kept, self._kept_back = self._kept_back, b""
        self._to_client.put(kept)
        self._flush_client()

    # --- from the client ----------------------------------------------------------------------------------------------
    def _read_client(self, events: int) -> None:
        if not self._wants_client:
            if events & READ_HANGUP and not self._client_ended:
                self._client_over()
            return
        try:
            data = self.client.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.left = True
            return
        if data:
            self._from_client(data)
        else:
            self._client_over()
        self._flush_node()

    def _client_over(self) -> None:
        """The client ended its side. What that means is the daemon's to say."""
        self._client_ended = True
        if self.end is None:
            self._to_node.put(record(EOF))
            self._flush_node()

    def _from_client(self, data: bytes) -> None:
        """Pass on what belongs to this request, and keep what is behind it."""
        if self._body is None:
            self._begun = None
            self._put(data)
            return
        if self._body.done:
            self.rest += data
            return
        try:
            self._body.feed(data)
        except FramingError:
            self._body = None  # the daemon says what is wrong with it
        else:
            if self._body.done and self._body.rest:
                self.rest = bytes(self._body.rest)
                data = data[: -len(self.rest)]
        if self._begun is not None:
            self._begun_size += len(data)
            if self._begun_size <= HELD_MAX:
                self._begun.append(data)
            else:
                self._begun = None
        self._put(data)

    def _put(self, data: bytes) -> None:
        if data:
            self._to_node.put(record_header(DATA, len(data)))
            self._to_node.put(data)

    def _flush_node(self) -> None:
        if self.node is None:
            return
        try:
            self._to_node.flush(self.node.sock)
        except OSError:  # it may have said why before it ended
            self._to_node.clear()

    # --- from the daemon ----------------------------------------------------------------------------------------------
    def _read_node(self) -> None:
        node = self.node
        if node is None:
            return
        try:
            data = node.sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.lost = True
            return
        try:
            for kind, payload in node.reader.feed(data):
                self._told(kind, payload)
        except (RecordError, ValueError):
            self.lost = True
        self._flush_client()

    def _told(self, kind: int, payload: bytes) -> None:
        if kind == DATA:
            self._to_the_client(payload)
        elif kind == ACCEPTED:
            self.accepted = True
        elif kind == EOF:
            self._box_ended = True
        elif kind == END:
            self.end = orjson.loads(payload)

    def _to_the_client(self, payload: bytes) -> None:
        if not self._answered:
            if payload.startswith(CONTINUE):
                if not self._continued:
                    self._continued = True
                    self._to_client.put(CONTINUE)
                payload = payload[len(CONTINUE) :]
            self.endless = _ENDLESS.search(payload.partition(b"\r\n\r\n")[0]) is not None
        self._answered += len(payload)
        if self._copy is not None:
            self._copy.add(payload)
            payload, self._kept_back = self._kept_back, payload
        self._to_client.put(payload)

    def _flush_client(self) -> None:
        try:
            self._to_client.flush(self.client)
            if self._box_ended and not self._to_client.size:
                self._box_ended, self._shut = False, True
                self.client.shutdown(socket.SHUT_WR)
        except OSError:
            self.left = True
            self._to_client.clear()
