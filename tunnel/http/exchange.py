"""One proxied exchange: the state that both lanes drive, and what may be decided from it.

It does no I/O and holds no clock. The driver opens streams, moves bytes, keeps the times of `Limits` and asks here
what bytes to send and what an event means. See the package's docstring for the order of calls.
"""

from __future__ import annotations

from typing import Final

from tunnel.http.body import LAST_CHUNK, Buffer, encode_chunk
from tunnel.http.errors import AnswerCut, ExchangeError, MisuseError, ProxyError, bad_request, too_large
from tunnel.http.fields import Field
from tunnel.http.heads import RequestHead
from tunnel.http.limits import LIMITS, Limits
from tunnel.http.request import CHUNKED, ProxyRequest, Via, prepare
from tunnel.http.response import AnswerHead, ResponseReader, client_head

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What a driver sends to a client that expects it, when it first wants the body; never after the answer's head."""
UNREAD_FROM: Final = 400
"""From this status on a box may have answered a body that it did not read, and may reset its connection for it."""


class Exchange:
    """A request on its way to a box and the answer on its way back. Raises ProxyError as `prepare` does.

    Made from a client's head, or from what `Prepared` made of one.
    """

    __slots__ = (
        "_answer_chunked",
        "_attempt_started",
        "_body_left",
        "_body_seen",
        "_limits",
        "_reader",
        "_request_done",
        "_via",
        "request",
    )

    def __init__(self, head: RequestHead | ProxyRequest, via: Via, limits: Limits = LIMITS) -> None:
        self.request: ProxyRequest = head if isinstance(head, ProxyRequest) else prepare(head, via, limits)
        self._via = via
        self._limits = limits
        self._body_seen = 0
        self._body_left = self.request.body_length
        self._request_done = self.request.body_length == 0
        self._attempt_started = False
        self._answer_chunked = False
        self._reader = self._new_reader()

    def __repr__(self) -> str:
        return (
            f"<Exchange {self.request.method.decode('ascii')} sent={self._attempt_started} body={self._body_seen}"
            f" request_done={self._request_done} answered={self.answered} answer={self.answer!r}"
            f" complete={self.complete}>"
        )

    def _new_reader(self) -> ResponseReader:
        return ResponseReader(
            self.request.method,
            mount=self._via.mount,
            hosts=self.request.hosts,
            home=self._via.home,
            sent=self.request.head,
            upgrade=bool(self.request.upgrade),
            limits=self._limits,
        )

    # --- towards the box ----------------------------------------------------------------------------------------------
    def start(self) -> bytes:
        """The head for the box. From here on the request counts as sent; once an attempt."""
        if self._attempt_started:
            raise MisuseError("this attempt has started already; restart() first")
        self._attempt_started = True
        return self.request.head

    def send_body(self, data: Buffer) -> list[Buffer]:
        """Framed body bytes for the box, `data` itself among them uncopied.

        Raises ProxyError 413 when a chunked body passes the limit (api.md: 1 GiB inclusive).
        """
        if self._request_done or not self._attempt_started:
            raise MisuseError("no body is expected now")
        size = len(data)
        self._body_seen += size
        if self.request.body_length == CHUNKED:
            if self._body_seen > self._limits.request_body:
                raise too_large(self._limits.request_body, "a chunked body over the limit")
            return encode_chunk((data,))
        if size > self._body_left:
            raise MisuseError("more body than Content-Length; use body_reader()")
        self._body_left -= size
        self._request_done = not self._body_left
        return [data] if size else []

    def end_body(self) -> bytes:
        """The client's body ended: what closes it towards the box (empty with a length).

        Raises ProxyError 400 when it ended early: the box must not take a part for the whole, so the driver resets
        the stream.
        """
        if self._request_done:
            return b""
        if self.request.body_length != CHUNKED:
            raise bad_request(f"the body ended {self._body_left} bytes early")
        self._request_done = True
        return LAST_CHUNK

    def sent_whole(self, body: int) -> None:
        """Head and body, `body` bytes of it, went out already, by a driver that had all of it at hand."""
        self.start()
        self._body_seen = body
        self._body_left = 0
        self._request_done = True

    @property
    def request_done(self) -> bool:
        """The whole request was given out for sending."""
        return self._attempt_started and self._request_done

    # --- from the box -------------------------------------------------------------------------------------------------
    def receive(self, data: bytes) -> list[Buffer]:
        """Take bytes from the box; the body bytes among them. `answer` is set once the head is whole.

        Raises ProxyError AGENT_BAD_RESPONSE while there is no head, AnswerCut after it.
        """
        return self._reader.receive(data)

    def receive_end(self) -> None:
        """The box's side of the stream ended cleanly. Raises as `failure` unless the answer is complete by that."""
        self._reader.receive_end()

    @property
    def answer(self) -> AnswerHead | None:
        """The final head of the answer, None until it is whole."""
        return self._reader.head

    @property
    def answered(self) -> bool:
        """Whether the box sent a single byte."""
        return self._reader.answered

    @property
    def interim(self) -> int:
        """How many interim answers (102, 103) came: each says that the box is at work, so it counts as progress."""
        return self._reader.interim

    @property
    def complete(self) -> bool:
        """The answer is whole. A driver stops reading here: a box may keep its connection open."""
        return self._reader.complete

    @property
    def upgraded(self) -> bool:
        """The box switched protocols: from now on bytes go both ways as they are."""
        head = self._reader.head
        return head is not None and bool(head.upgrade)

    # --- towards the client -------------------------------------------------------------------------------------------
    @property
    def client_keep_alive(self) -> bool:
        """Whether the client's connection may stay open, asked when the answer's head goes out.

        Not with an answer that came before the request was read: the rest of the body would be the next request.
        """
        head = self._reader.head
        return (
            self.request.client_keep_alive
            and self._request_done
            and head is not None
            and not head.upgrade
            and (self.request.client_http11 or head.bodyless or head.length >= 0)
        )

    def client_head(self, extra: list[Field] | None = None) -> bytes:
        """The answer's head for a driver that writes to the client's socket; `extra` are fields of ours (CORS)."""
        head = self._reader.head
        if head is None:
            raise MisuseError("no answer yet")
        raw, self._answer_chunked = client_head(
            head,
            request_id=self._via.request_id,
            http11=self.request.client_http11,
            keep_alive=self.client_keep_alive,
            extra=extra,
        )
        return raw

    def client_body(self, pieces: list[Buffer]) -> list[Buffer]:
        """Framed body bytes for the client, after `client_head`; `pieces` are what `receive` gave."""
        return encode_chunk(pieces) if self._answer_chunked else pieces

    def client_end(self) -> bytes:
        """What ends the answer's body towards the client. Only for a complete answer."""
        if not self.complete:
            raise MisuseError("an incomplete answer has no end; reset the connection")
        return LAST_CHUNK if self._answer_chunked else b""

    # --- decisions ----------------------------------------------------------------------------------------------------
    def failure(self, code: str, detail: str) -> ExchangeError:
        """The error to raise for what the driver saw: TUNNEL_TIMEOUT, TUNNEL_DISCONNECTED, AGENT_UNREACHABLE …

        A ProxyError while the client can still be told, an AnswerCut once the answer's head is known.
        """
        if self._reader.head is not None:
            return AnswerCut(code, detail)
        return ProxyError(code, detail)

    def reset_by_box(self) -> ExchangeError:
        """The error for a stream that was reset: like a clean end, except that a reset never completes a body."""
        if self._reader.head is not None:
            return AnswerCut("AGENT_BAD_RESPONSE", "the stream was reset within the body")
        if self.answered:
            return ProxyError("AGENT_BAD_RESPONSE", "the stream was reset within the head")
        return ProxyError("AGENT_UNREACHABLE", "the stream was reset without one byte")

    def may_retry(self, *, reused: bool, kept: bool = False) -> bool:
        """Whether a failed attempt may be made again on another stream (tunnel.md, "Running it").

        Yes while nothing was sent. After that only on a `reused` stream (or one whose session went away, or another
        device's, which the driver counts as reused) that gave no byte, for an idempotent request whose body was not
        begun, or is `kept` by the driver, which gives all of it again.
        """
        if self.answered:
            return False
        if not self._attempt_started:
            return True
        return reused and self.request.idempotent and (kept or not self._body_seen)

    def restart(self, *, kept: bool = False) -> None:
        """Begin another attempt after `may_retry`, which was asked with the same `kept`."""
        if self.answered or (self._body_seen and not kept):
            raise MisuseError("this exchange cannot be made again")
        self._attempt_started = False
        self._body_seen = 0
        self._body_left = self.request.body_length
        self._request_done = self.request.body_length == 0
        self._reader = self._new_reader()

    @property
    def reusable(self) -> bool:
        """Whether the stream is clean for another request: both sides complete, nothing behind, the box keeps it.

        Not behind an error that answers a body: the box may not have read all of it, and then resets its connection.
        Nor where the box took a credential for the whole connection.
        """
        head = self._reader.head
        return (
            self.request_done
            and self.complete
            and head is not None
            and head.keep_alive
            and not (self.request.body_length and head.status >= UNREAD_FROM)
            and not self._reader.extra
            and not self._via.close
            and not self.request.bound
        )
