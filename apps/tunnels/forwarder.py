"""The forwarder: one HTTP exchange from a client's socket through a device's tunnel to the box, and back.

The only place in the control plane that imports `tunnel.http`; `apps.proxy` takes what it needs of it from here. It
knows ids, routes and sockets: neither users nor Django's requests. One thread, the caller's, carries an exchange;
which stream it goes out on is decided by `forwarder_pool`, how one is opened by `forwarder_stream`, how bytes move by
`forwarder_relay`; here is the order of these, what is tried again, and who is left in which state.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol

from apps.tunnels.forwarder_pool import StreamPool
from apps.tunnels.forwarder_relay import Relay as Relay
from apps.tunnels.forwarder_relay import Tap as Tap
from apps.tunnels.forwarder_stream import BoxStream, ClientLeft, Control, Ended, OpenFailed, Route, Watch, open_stream
from apps.tunnels.forwarder_switch import Switch
from tunnel.http import AnswerCut as AnswerCut
from tunnel.http import AnswerHead as AnswerHead
from tunnel.http import Buffer as Buffer
from tunnel.http import Exchange as Exchange
from tunnel.http import Field as Field
from tunnel.http import Limits as Limits
from tunnel.http import OwnParams as OwnParams
from tunnel.http import ProxyError as ProxyError
from tunnel.http import RequestHead as RequestHead
from tunnel.http import Via as Via
from tunnel.http import is_device_id as is_device_id
from tunnel.http import own_params as own_params

__all__ = ["ClientLeft", "Control", "Ended", "Route"]

Outcome = Literal["", "ok", "refused", "client_left", "ended", "cut", "abandoned"]
FindRoute = Callable[[str], Route | None]
"""The registry's present word on the device, looked for in place of this session; None: it is offline."""
Elsewhere = Callable[[str], Route | None]
"""Another device that may take the request which failed with this code, unanswered; None: nobody is left."""

LOOK_SECONDS: Final = 0.1
"""The pause between two looks for a device that changes daemons."""
pool: Final[StreamPool[BoxStream]] = StreamPool()
"""The idle streams of this process."""
os.register_at_fork(after_in_child=pool.abandon)


class Client(Protocol):
    """The client's connection as the worker lends it (`cloud.server.lend.Takeover`)."""

    sock: socket.socket

    def take(self) -> bytes:
        """Raw bytes read behind the request's head; from here on the socket is ours."""

    def give_back(self, rest: bytes, *, answered: bool, keep_alive: bool, sent: int = 0) -> None:
        """Over: see `cloud.server.lend`."""

    def cut(self, sent: int = 0) -> None:
        """Reset it."""


class Forward:
    """One exchange. Call `to_head`, then `to_end`; in any case `close` at last, which is idempotent.

    After `to_head` raised, the worker answers with what the view returns. After it returned, `to_end` writes the answer
    itself and never raises for remote faults: `outcome` tells.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        request_id: str,
        route: Route,
        find_route: FindRoute,
        client: Client,
        control: Control,
        limits: Limits,
        secret: str,
        tap: Tap | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.exchange = exchange
        self.route = route
        self.outcome: Outcome = ""
        self.problem = ""
        self.attempts = 0
        self.reused = False
        self.started = time.monotonic()
        self.head_at: float | None = None
        self._request_id = request_id
        self._find_route = find_route
        self._client = client
        self._control = control
        self._limits = limits
        self._secret = secret
        self._tap = tap
        self._relay: Relay | None = None
        self._stream: BoxStream | None = None
        self._switch: Switch | None = None
        self._renew_until = 0.0
        self._elsewhere = elsewhere

    def __repr__(self) -> str:
        return f"<Forward {self.outcome or 'running'} session={self.route.session} {self.exchange!r} {self._stream!r}>"

    @property
    def bytes_up(self) -> int:
        """Body bytes taken from the client; of an upgraded connection all behind the head."""
        if self._switch is not None:
            return self._switch.bytes_up
        return 0 if self._relay is None else self._relay.bytes_up

    @property
    def bytes_down(self) -> int:
        """Body bytes of the box's answer; of an upgraded connection all behind the head."""
        if self._switch is not None:
            return self._switch.bytes_down
        return 0 if self._relay is None else self._relay.bytes_down

    def to_head(self) -> AnswerHead:
        """Open a stream, send the request, and wait for the answer's head while the body goes out.

        Raises ProxyError with the code for the client, ClientLeft, or Ended.
        """
        early = self._client.take()
        self._client.sock.setblocking(False)
        watch = Watch(self._client.sock, self._control)
        keep = self._elsewhere is not None and self.exchange.request.idempotent
        relay = self._relay = Relay(self.exchange, self._client.sock, early, watch, self._limits, self._tap, keep=keep)
        try:
            head = self._head(relay, watch)
        except ClientLeft:
            self._over("client_left")
            self._client.cut(relay.sent)
            raise
        except Ended as error:
            self._over("ended", error.code)
            self._return_unanswered(relay)
            raise
        except BaseException as error:
            self._over("refused", f"{getattr(error, 'code', type(error).__name__)}: {error}")
            self._return_unanswered(relay)
            raise
        self.head_at = time.monotonic()
        return head

    def _head(self, relay: Relay, watch: Watch) -> AnswerHead:
        try:
            return self._attempts(relay, watch)
        except AnswerCut as error:  # the fault came with the head, of which the client has seen nothing yet
            raise ProxyError(error.code, str(error)) from error

    def _return_unanswered(self, relay: Relay) -> None:
        read = relay.request_read
        keep = read and self.exchange.request.client_keep_alive
        self._client.give_back(relay.rest if read else b"", answered=False, keep_alive=keep)

    def refuse(self, code: str) -> None:
        """After `to_head`: do not pass the answer on; the worker answers with what the view returns."""
        if self._relay is not None and not self.outcome:
            self._over("refused", code)
            self._return_unanswered(self._relay)

    # --- attempts -----------------------------------------------------------------------------------------------------
    def _attempts(self, relay: Relay, watch: Watch) -> AnswerHead:
        exchange = self.exchange
        fresh_only = False
        while True:
            stream = self._next_stream(watch, fresh_only=fresh_only)
            self._stream = stream
            self.attempts += 1
            self.reused = stream.uses > 0
            stream.uses += 1
            try:
                return relay.to_head(stream)
            except ProxyError as error:
                if exchange.answered or error.code != "AGENT_UNREACHABLE":
                    raise
                watch.set_box(None)
                self._drop_stream()
                if not self._try_again(error.code, watch, kept=relay.kept):
                    raise
                exchange.restart(kept=relay.kept)
                fresh_only = True

    def _next_stream(self, watch: Watch, *, fresh_only: bool) -> BoxStream:
        """An idle stream if one may carry this request, else a new one; at the newest session if the first is gone."""
        request = self.exchange.request
        repeatable = request.idempotent and request.body_length == 0
        while True:
            if not fresh_only:
                found = pool.take(self.route.session, idempotent=repeatable, now=time.monotonic())
                if found is not None:
                    return found
            try:
                return open_stream(
                    self.route,
                    watch,
                    secret=self._secret,
                    request_id=self._request_id,
                    open_seconds=self._limits.open_seconds,
                )
            except OpenFailed as error:
                # Nothing was sent, so any request may try the session that the device has by now, or another device.
                if error.code == "TUNNEL_DISCONNECTED":
                    pool.drop(self.route.session)  # its daemon waits for the idle ones before the box may go on
                possible = error.elsewhere or self._elsewhere is not None
                if not possible or not self._move_on(error.code, watch):
                    raise ProxyError(error.code, str(error), retry_after=error.retry_after) from error

    def _try_again(self, code: str, watch: Watch, *, kept: bool) -> bool:
        """Whether a request that ended unanswered goes out once more, and on which session."""
        if self.reused:
            pool.unanswered(self.route.session)
            return self.exchange.may_retry(reused=True, kept=kept)
        return self.exchange.may_retry(reused=True, kept=kept) and self._move_on(code, watch)

    def _move_on(self, code: str, watch: Watch) -> bool:
        """Turn to another device where one may take the request, else to a newer session of this one.

        Each time to a newer one, but all in all within the time that an open may take.
        """
        other = self._another(code)
        now = time.monotonic()
        if other is None:
            self._renew_until = self._renew_until or now + self._limits.open_seconds
            other = self._newer(code, watch) if now < self._renew_until else None
        if other is None:
            return False
        self.route = other
        return True

    def _another(self, code: str) -> Route | None:
        return None if self._elsewhere is None else self._elsewhere(code)

    def _newer(self, code: str, watch: Watch) -> Route | None:
        """The device's newer session; one on its way from a daemon that drains is waited for, as an open may take.

        Whoever else may take the request is asked again with each look: another of a cluster may be back sooner, and
        this one is to be counted as theirs. Raises ClientLeft and Ended.
        """
        while True:
            newer = self._find_route(self.route.session)
            if newer is None:
                return None
            back = newer.session not in ("", self.route.session)
            if not back:
                now = time.monotonic()
                if not newer.moving or now >= self._renew_until:
                    return None
                watch.wait(0, 0, min(self._renew_until, now + LOOK_SECONDS))
            other = self._another(code)
            if other is not None or back:
                return other or newer

    # --- the answer ---------------------------------------------------------------------------------------------------
    def to_end(self, extra: list[Field]) -> None:
        """Write the answer to the client, with `extra` fields of ours, until it is whole or one side is gone."""
        relay = self._relay
        if relay is None or self.outcome:
            return
        keep_alive = self.exchange.client_keep_alive
        try:
            if self.exchange.upgraded:
                self._join(relay, extra)
            else:
                relay.to_end(extra)
        except AnswerCut as error:
            self._over("cut", f"{error.code}: {error}")
        except ClientLeft:
            self._over("client_left")
        except Ended as error:
            self._over("ended", error.code)
        else:
            self._rest_stream(relay)
            self.outcome = "ok"
            rest = relay.rest if self._switch is None else b""
            self._client.give_back(rest, answered=True, keep_alive=keep_alive, sent=relay.sent)
            return
        self._client.cut(relay.sent)

    def _join(self, relay: Relay, extra: list[Field]) -> None:
        """The box switched protocols: from here on its bytes and the client's pass as they are."""
        if self._stream is None:
            return
        to_client, from_client, from_box = relay.take_over(extra)
        idle = self._limits.upgraded_idle_seconds
        client, box = self._client.sock, self._stream.sock
        self._switch = Switch(client, box, self._control, idle_seconds=idle, to_client=to_client)
        self._switch.begin(from_client, from_box)
        self._switch.run()

    def _rest_stream(self, relay: Relay) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        if self._switch is not None:
            stream.close()  # both sides have ended
            return
        if not relay.exchange.request_done:
            stream.reset()  # the box must not take a part of the request for the whole
            return
        pool.give(stream.session, stream, announced=stream.announced, reusable=relay.clean, now=time.monotonic())

    def _over(self, outcome: Outcome, problem: str = "") -> None:
        self.outcome = outcome
        self.problem = problem
        self._drop_stream()

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset()

    def close(self) -> None:
        """Leave nothing behind: an exchange whose answer nobody wrote is reset on both sides."""
        if self.outcome:
            return
        self._over("abandoned")
        if self._relay is not None:
            self._client.cut(self._relay.sent)
