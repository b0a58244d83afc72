"""One proxied request in its thread, then without one, and what becomes of its client's connection.

The thread moves the bytes for a moment; what lasts longer goes on in the loop of `long_exchanges`, and what may wait
for a database or a daemon beside it.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import http_date

from apps.common.errors import DomainError
from apps.common.observability import metrics
from apps.proxy.exchanges.attempts import RETRY_AFTER, Attempts
from apps.proxy.exchanges.carried import Carried
from apps.proxy.exchanges.interfaces import Client, Others, Tap
from apps.proxy.exchanges.long_exchanges import LongExchange, LongExchanges
from apps.tunnels.carriage import NOTHING, Carriage, Copy
from apps.tunnels.client_request import Language, ProxyError, RequestHead, error_response
from apps.tunnels.route import Route
from tunnel.contract import EXPOSED, ExchangeCall, ExchangeEnd, language_of

CLIENT_CLOSED: Final = 499
"""The status in logs for a client that left before its answer; nobody receives it (nginx's convention)."""
THREAD_SECONDS: Final = 1.0
"""How long an exchange may hold its thread, while a quarter of the threads are free."""
SCARCE_SECONDS: Final = 0.02
"""And while they are not: a box of the neighbourhood has answered by then."""
SCARCE: Final = 0.25
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", socket.TCP_KEEPINTVL), 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""A client that vanished without a word is noticed after two minutes, not when the idle time of an hour is over."""


class Forwarding(Attempts):
    """One request on its way, which holds a place in `loop`. `start` it in the request's thread."""

    def __init__(
        self,
        request: HttpRequest,
        route: Route,
        *,
        loop: LongExchanges,
        head: RequestHead,
        idempotent: bool,
        call: ExchangeCall,
        carriage: Carriage,
        copy: Copy | None,
        client: Client,
        others: Others | None,
        tap: Tap | None,
    ) -> None:
        super().__init__(
            request,
            route,
            head=head,
            idempotent=idempotent,
            call=call,
            carriage=carriage,
            client=client,
            others=others,
        )
        self._loop = loop
        self._copy = copy
        self._tap = tap
        self._placed = True
        self._goes_on = False

    # --- in the request's thread --------------------------------------------------------------------------------------
    def start(self, *, upgrade: bool) -> HttpResponseBase:
        """Carry it as long as a thread may be held. Raises DomainError for a refusal."""
        try:
            self._client.sock.setblocking(False)
            self.attempt()
            while not self.outcome:
                if self._has_to_wait or not self._moved(upgrade=upgrade):
                    return self._hand_over()
                if not self.settled():
                    self.attempt()
        except BaseException:
            self._carriage.abort()
            self._leave_place()
            raise
        return self._finish_here()

    def _moved(self, *, upgrade: bool) -> bool:
        """Move bytes until nothing is left to move; False: it is to go on without a thread."""
        carriage = self._carriage
        node = carriage.node
        poll, until = select.poll(), self._until(upgrade=upgrade)
        client_fd = self._client.sock.fileno()
        node_fd = -1 if node is None else node.sock.fileno()
        watched = (NOTHING, NOTHING)
        while not carriage.over:
            if carriage.waits_for_release:
                self._read_copy()
                continue
            if carriage.endless or (upgrade and carriage.answered):
                return False
            wanted = carriage.interests()
            for fd, before, now in zip((client_fd, node_fd), watched, wanted, strict=True):
                if now != NOTHING:
                    poll.register(fd, now)
                elif before != NOTHING:
                    poll.unregister(fd)
            watched = wanted
            left = until - time.monotonic()
            happened = poll.poll(max(0.0, left) * 1000)
            client = node_events = 0
            for fd, event in happened:
                if fd == client_fd:
                    client = event
                else:
                    node_events = event
            if happened:
                carriage.turn(client, node_events)
            if left <= 0:  # with whatever is at hand moved once
                return carriage.over
        return True

    def _until(self, *, upgrade: bool) -> float:
        """When the thread is needed for others."""
        if not (upgrade or self._carriage.request_read):
            return time.monotonic()
        scarce = self._client.threads_free() < SCARCE
        return self._started + (SCARCE_SECONDS if scarce else THREAD_SECONDS)

    def _finish_here(self) -> HttpResponseBase:
        client, carriage = self._client, self._carriage
        if self.outcome == "refused":
            error = self._refused or ProxyError("INTERNAL_ERROR", "refused")
            read = carriage.request_read
            client.give_back(carriage.rest if read else b"", answered=False, keep_alive=read)
            self._leave_place()
            raise DomainError(error.code, self._message, details=error.details, retry_after=error.retry_after)
        if self.outcome == "left":
            client.cut(carriage.sent)
            self._over()
            return HttpResponse(status=CLIENT_CLOSED)
        end = carriage.end
        status = (end["status"] if end is not None else None) or CLIENT_CLOSED
        if self.outcome == "cut" and client.unsent():
            return self._hand_over()
        return self._carried(Carried(status, self._settle_here, self._abandon, goes_on=False))

    def _settle_here(self) -> None:
        """The view's answer is what was written already."""
        client, carriage, end = self._client, self._carriage, self._carriage.end
        try:
            if self.outcome == "cut" or end is None or carriage.left:
                client.cut(carriage.sent)
            else:
                keep = end["keep"] and carriage.request_read
                client.give_back(carriage.rest, answered=True, keep_alive=keep, sent=carriage.sent)
        finally:
            self._over()

    def _abandon(self) -> None:
        """Another answer took the place of this one, which is too late."""
        self.outcome = self.outcome or "cut"
        try:
            self._carriage.abort()
            self._client.cut(self._carriage.sent)
        finally:
            self._over()

    def _carried(self, response: Carried) -> Carried:
        self._request.carried = response  # type: ignore[attr-defined]  # read by CarriedMiddleware
        return response

    # --- without a thread ---------------------------------------------------------------------------------------------
    def _hand_over(self) -> HttpResponseBase:
        """Let it go on in the loop."""
        end = self._carriage.end
        status = (end["status"] if end is not None else None) or 200

        def settle() -> None:
            self._client.hand_over(self._go_on)

        return self._carried(Carried(status, settle, self._abandon, goes_on=True))

    def _go_on(self) -> None:
        """In the loop from here on; called by the request's thread as the last it does."""
        for level, option, value in _KEEPALIVE:
            try:
                self._client.sock.setsockopt(level, option, value)
            except OSError:
                self._carriage.left = True
        self._may_wait = self._goes_on = True
        if self.outcome:  # it is over but for its last bytes
            self._finish_there()
        elif self._has_to_wait:
            self._wait_there()
        else:
            self._adopt()

    def _adopt(self) -> None:
        self._loop.adopt(LongExchange(self._carriage, self._ended_there))

    def _wait_there(self) -> None:
        """Make another attempt in a thread that may wait, if its user has not all of them."""
        if not self._loop.waiting(self._call["user_id"], self._attempt_there):
            self._carriage.abort()
            self._refuse(ProxyError("OVERLOADED", "too many requests wait for devices", retry_after=RETRY_AFTER))
            self._finish_soon()

    def _ended_there(self) -> None:
        """In the loop's thread: nothing is left to move."""
        carriage, end = self._carriage, self._carriage.end
        if carriage.waits_for_release:
            self._loop.aside(self._release_there)
        elif carriage.left or carriage.answered or _is_final(end, alone=self._others is None):
            self.settled()  # nothing of it can be tried again, so nobody is asked
            self._finish_soon()
        else:
            self._wait_there()

    def _finish_soon(self) -> None:
        """From the loop's thread: whoever else counts the request is told beside it."""
        if self._others is None:
            self._finish_there()
        else:
            self._loop.aside(self._finish_there)

    def _release_there(self) -> None:
        """In a thread beside the loop: the copy is read, then the client gets the last of the answer."""
        try:
            self._read_copy()
        finally:
            self._adopt()

    def _attempt_there(self) -> None:
        """In a thread that may wait: what became of the last attempt, and another one."""
        try:
            if self._has_to_wait or not self.settled():
                self.attempt()
        except BaseException:
            self._carriage.abort()
            self.outcome = self.outcome or "cut"
            self._finish_there()
            raise
        if self.outcome:
            self._finish_there()
        else:
            self._adopt()

    def _finish_there(self) -> None:
        client, carriage, end = self._client, self._carriage, self._carriage.end
        if self.outcome == "done" and end is not None:
            client.resume(carriage.rest, keep_alive=end["keep"] and carriage.request_read)
        elif self.outcome == "refused" and self._tell():
            client.resume(carriage.rest, keep_alive=False)
        elif self.outcome == "cut" and client.unsent():
            self._loop.when_flushed(client.unsent, self._reset)
            return
        else:
            client.reset()
        self._over()

    def _reset(self) -> None:
        """Called by the loop."""
        self._client.reset()
        if self._others is None:
            self._over()
        else:
            self._loop.aside(self._over)

    def _tell(self) -> bool:
        """Write the refusal of a request whose view is over. False: the client takes none."""
        error = self._refused or ProxyError("INTERNAL_ERROR", "refused")
        language = self._language()
        answer = error_response(
            error,
            self._call["request_id"],
            language=language,
            keep_alive=False,
            head_only=self._head.method == b"HEAD",
            message=self._message or None,
            extra=self._refusal_lines(error, language),
        )
        try:
            return self._client.sock.send(answer) == len(answer)
        except OSError:
            return False

    def _refusal_lines(self, error: ProxyError, language: Language) -> bytes:
        """The fields that Django's middleware adds to a refusal within the view."""
        fields = [
            ("Vary", "Origin, Accept-Language"),
            ("Content-Language", language),
            ("Date", http_date()),
            *self._call["fields"],
        ]
        if any(name == "Access-Control-Allow-Origin" for name, _ in self._call["fields"]):
            fields.append(("Access-Control-Expose-Headers", ", ".join(EXPOSED)))
        if error.status == 401:
            fields.append(("WWW-Authenticate", 'Bearer realm="visiona"'))
        return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1")

    def _language(self) -> Language:
        said = language_of(self._request.META.get("HTTP_ACCEPT_LANGUAGE", ""), settings.LANGUAGE_CODE)
        return "zh-hant" if said == "zh-hant" else "en"

    # --- the end ------------------------------------------------------------------------------------------------------
    def _read_copy(self) -> None:
        """Let the copy be read if it is one of a whole answer; the client gets the rest of its own in any case."""
        copy, end = self._copy, self._carriage.end
        try:
            if self._tap is not None and copy is not None and copy.whole and end is not None and end["outcome"] == "ok":
                self._tap.read(bytes(copy.bytes))
        finally:
            self._carriage.release()

    def _over(self) -> None:
        """The client's connection is another's again. Not in the loop's thread where there are others."""
        self._leave_place()
        end = self._carriage.end
        if self._goes_on:
            match, status = self._request.resolver_match, (end["status"] if end is not None else None) or CLIENT_CLOSED
            seconds = (end["head_ms"] or 0.0) / 1000 if end is not None else time.monotonic() - self._started
            metrics.observe(self._request.method or "", match.route if match else "unmatched", status, seconds)
        if self._others is not None:
            if end is not None and end["status"] is not None:
                self._others.answered()
            self._others.over(self._code if self.outcome == "cut" else "")

    def _leave_place(self) -> None:
        if self._placed:
            self._placed = False
            self._loop.leave(self._call["user_id"])
            if self._copy is not None:
                self._loop.leave_copy(self._call["user_id"])


def _is_final(end: ExchangeEnd | None, *, alone: bool) -> bool:
    """Whether nobody else may take the request after the daemon's word on its end."""
    return end is not None and (alone or end["outcome"] != "refused")
