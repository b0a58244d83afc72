"""Who may use the fast lane: Django's word on a caller and a device, kept for some seconds.

It does not know sockets, exchanges or HTTP: a caller is an `AuthorizeRequest`, the word a `Grant` or a `Denied`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import orjson
import trio

from tunnel.contract import Authorized, AuthorizeRequest, Forbidden, client_network
from tunnel.daemon.control.client import ControlPlane, ControlUnavailable
from tunnel.daemon.lane.grants import Addresses, Credentials, Grants
from tunnel.http import LIMITS, Limits, ProxyError
from tunnel.logs import JsonLog

_REFRESH_AT: Final = 0.7  # of a grant's life: it is asked for anew while it is still good
_MAX_TTL: Final = 60.0
_ASK_AGAIN: Final = (0.05, 0.5)  # the pause between two look-ups about a device that moves; it grows
_PASSED_ON: Final = frozenset({"DATABASE_UNAVAILABLE", "CACHE_UNAVAILABLE", "OVERLOADED"})


RATE_HEADERS: Final = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


class Denied(ProxyError):
    """Django's refusal, told to the client with its own status and message."""

    def __init__(self, said: Forbidden) -> None:
        super().__init__("INTERNAL_ERROR", said["message"], retry_after=said.get("retry_after"))
        self.code = said["code"]
        self.status = said["status"] if 400 <= said["status"] <= 599 else 503
        self.details = said.get("details")
        self.message = said["message"]
        told = said.get("headers", {}) if said["status"] == 429 else {}
        self.headers = b"".join(
            b"%b: %b\r\n" % (name.encode(), told[name].encode()) for name in RATE_HEADERS if name in told
        )

    @property
    def definite(self) -> bool:
        """Whether it says that the caller may not: not that something is down, nor to come again later."""
        return self.status < 500 and self.status != 429


Question = tuple[str, str, str, tuple[str, str] | None]
"""Kind, login and device; and, where the page is judged, the Origin and Host that it came with."""


class Grant:
    """An allowed caller. `key` is empty for one that may not be kept (a ticket, which is spent, unless reusable)."""

    __slots__ = (
        "again", "checked_at", "device_id", "epoch", "expires", "key", "limits", "login", "moving", "node_url",
        "question", "refresh_at", "session", "user_id", "who",
    )  # fmt: skip

    def __init__(self, key: bytes, asked: AuthorizeRequest, said: Authorized, limits: Limits, now: float) -> None:
        self.key = key
        self.again = asked.copy()  # how to ask anew, without keeping a token that Django can name otherwise
        self.again["device"] = said["device_id"]
        self.again["kind"] = "login" if said["login"] else "none"
        self.again["token"] = said["login"]
        judged = asked["websocket"] or not said["login"]  # for upgrades, and where nobody shows a credential
        page = (asked["origin"], asked["host"]) if judged else None
        self.question: Question = self.again["kind"], said["login"], said["device_id"], page
        """All of `again` that Django's answer can depend on: who have the same share one answer."""
        self.device_id = said["device_id"]
        self.epoch = said["epoch"]
        self.session = said["session"]
        self.node_url = said["node_url"]
        self.moving = said.get("moving", False)
        self.user_id = said["user_id"]
        self.login = said["login"]
        self.who = b'"device":%b,"user":%b' % (orjson.dumps(self.device_id), orjson.dumps(self.user_id))
        """The same as facts of a log line."""
        self.limits = limits
        ttl = min(max(float(said["ttl"]), 0.0), _MAX_TTL)
        self.checked_at = now
        self.expires = now + ttl
        self.refresh_at = now + ttl * _REFRESH_AT

    def __repr__(self) -> str:
        return f"<Grant user={self.user_id} device={self.device_id} session={self.session}>"


def key_of(*parts: bytes) -> bytes:
    """What a grant is kept under: no token stands in it."""
    return hashlib.sha256(b"\0".join(parts)).digest()


class _Flight:
    __slots__ = ("done", "error", "grant")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.grant: Grant | None = None
        self.error: ProxyError | None = None


class Authorizer:
    """Asks Django, once at a time for each key, and keeps what is allowed. `spawn` starts the look-ups."""

    def __init__(
        self, control: ControlPlane, log: JsonLog, spawn: Callable[..., None], *, limits: Limits = LIMITS
    ) -> None:
        self._control = control
        self._log = log
        self._spawn = spawn
        self._base = limits
        self._limits: dict[int, Limits] = {}
        self._kept: Grants[Grant] = Grants()
        self._credentials = Credentials()
        self._addresses = Addresses()
        self.find = self._kept.find
        """The grant under a key, or None; whether it is still good, its times tell."""
        self._flights: dict[bytes, _Flight] = {}
        self._generation = 0  # raised by each invalidation: what was asked before it is not believed
        self.asked = 0

    def __repr__(self) -> str:
        return f"<Authorizer kept={len(self._kept)} flights={len(self._flights)}>"

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, key: bytes, asked: AuthorizeRequest | None = None) -> Grant | None:
        """The grant under `key` if it is still good. With `asked` it is renewed in time, in the background."""
        grant = self._kept.find(key)
        if grant is None:
            return None
        now = trio.current_time()
        if now >= grant.refresh_at:
            if now >= grant.expires:
                self._kept.pop(key)
                return None
            if asked is not None:
                grant.refresh_at = grant.expires
                self._fly(key, asked)
        return grant

    async def ask(self, key: bytes, asked: AuthorizeRequest) -> Grant:
        """Django's word. Callers with the same key share one look-up.

        Raises Denied; ProxyError 503 without a word, 429 for an address that brought too many bad credentials.
        """
        refusal = self._credentials.refusal(_name_of(asked), trio.current_time()) if key else None
        if refusal is not None:
            raise refusal.with_traceback(None)
        if not key:
            return await self._look_up(key, asked)
        flight = self._flights.get(key) or self._fly(key, asked)
        await flight.done.wait()
        if flight.error is not None:
            raise flight.error.with_traceback(None)
        if flight.grant is None:
            raise ProxyError("TUNNEL_UNAVAILABLE", "the look-up was given up")
        return flight.grant

    async def settled(
        self, key: bytes, asked: AuthorizeRequest, *, seconds: float, than: str = "", leaving: str = ""
    ) -> Grant:
        """As `ask`; a device on its way from one daemon to another is waited for, up to `seconds`.

        `than` is a session that will not do; `leaving` the URL of a node whose sessions are all on their way. While it
        waits, a look-up that fails is made again: only Django's word that the caller may not ends it.
        """
        deadline, pause = trio.current_time() + seconds, _ASK_AGAIN[0]
        known = False  # that it is on its way
        while True:
            try:
                grant = await self.ask(key, asked)
            except ProxyError as error:
                refused = isinstance(error, Denied) and (error.definite or error.code == "TUNNEL_DISCONNECTED")
                if refused or not known or trio.current_time() >= deadline:
                    raise
            else:
                moving = grant.moving or (leaving != "" and grant.node_url == leaving)
                if not moving or grant.session not in ("", than):
                    return grant
                if trio.current_time() >= deadline:
                    raise ProxyError("TUNNEL_DISCONNECTED", "the device has not come back from a daemon that drained")
                self.forget(grant)
                asked, known = grant.again, True  # a ticket is spent by now, and the call was counted
            await trio.sleep(pause)
            pause = min(pause * 1.5, _ASK_AGAIN[1])

    async def refusal(self, grant: Grant) -> Denied | None:
        """Ask anew about a caller that is being served: the definite refusal, if there is one."""
        try:
            await self._look_up(b"", grant.again)
        except Denied as denied:
            return denied if denied.definite else None
        except ProxyError:
            return None
        return None

    def forget(self, grant: Grant) -> None:
        """Drop one: it turned out to be out of date."""
        if self._kept.find(grant.key) is grant:
            self._kept.pop(grant.key)

    def invalidate(self, *, users: Iterable[str], logins: Iterable[str], devices: Iterable[str]) -> int:
        """Drop what is kept of them, and what is being asked about anybody just now; how many were dropped."""
        self._generation += 1
        gone = set(users), set(logins) - {""}, set(devices)
        self._credentials.forget_refusals()
        return self._kept.drop(lambda grant: concerns(grant, *gone))

    # Inside

    def _fly(self, key: bytes, asked: AuthorizeRequest) -> _Flight:
        flight = self._flights.get(key)
        if flight is not None:
            return flight
        flight = self._flights[key] = _Flight()  # their number is bounded by the queues of `ControlPlane`
        self._spawn(self._flown, key, asked, flight)
        return flight

    async def _flown(self, key: bytes, asked: AuthorizeRequest, flight: _Flight) -> None:
        try:
            flight.grant = await self._look_up(key, asked)
        except Denied as denied:
            self._kept.pop(key)
            flight.error = denied
        except ProxyError as error:
            flight.error = error
        finally:
            del self._flights[key]
            flight.done.set()

    async def _look_up(self, key: bytes, asked: AuthorizeRequest) -> Grant:
        name = _name_of(asked)
        user = self._credentials.user_of(name)
        if user is None and asked["kind"] != "login":
            self._addresses.check(asked["address"], trio.current_time())
        while True:
            generation = self._generation
            now = trio.current_time()  # before the call: what it says is as old as the question
            said = await self._call(asked, user)
            if generation == self._generation or asked["kind"] == "ticket":
                break
        if not said["allowed"]:
            denied = Denied(said)
            if denied.status == 401:
                self._note_bad(name, asked, denied)
            raise denied
        if asked["kind"] == "ticket":  # a spent one is good for this use, and so is what an invalidation overtook
            key = key_of_ticket(asked) if said.get("reusable") and generation == self._generation else b""
        grant = Grant(key, asked, said, self.limits_of(said["body_max"]), now)
        if asked["kind"] != "ticket":
            self._credentials.good(name, grant.user_id)
        self._credentials.good(_name_of(grant.again), grant.user_id)
        if key and grant.expires > now and (grant.session or not grant.moving):
            self._kept.put(grant, now)
        return grant

    def _note_bad(self, name: bytes, asked: AuthorizeRequest, denied: Denied) -> None:
        """Nobody's credential: the next one who brings it need not be asked about for some seconds."""
        now = trio.current_time()
        if asked["kind"] != "ticket":  # one may be spent now, and put back after a failure
            self._credentials.bad(name, denied, now)
        if asked["kind"] in ("bearer", "ticket"):
            self._addresses.refused(asked["address"], now)

    async def _call(self, asked: AuthorizeRequest, user: str | None) -> Authorized | Forbidden:
        self.asked += 1
        known = user is not None or asked["kind"] == "login"
        party = user or (asked["token"] if known else client_network(asked["address"]))
        try:
            return await self._control.authorize(asked, known=known, party=party)
        except ControlUnavailable as error:
            self._log.warning("authorize_failed", error=str(error), request_id=asked["request_id"])
            code = error.code if error.code in _PASSED_ON else "TUNNEL_UNAVAILABLE"
            raise ProxyError(code, "no word from the API", retry_after=error.retry_after or 2) from None

    def limits_of(self, body_max: int) -> Limits:
        """What an exchange goes by whose body may be so long."""
        limits = self._limits.get(body_max)
        if limits is None:
            base: dict[str, Any] = {name: getattr(self._base, name) for name in Limits.__slots__}
            limits = Limits(**base | {"request_body": body_max})
            if len(self._limits) < 64:
                self._limits[body_max] = limits
        return limits


def key_of_ticket(asked: AuthorizeRequest) -> bytes:
    """What the grant of a reusable ticket is kept under: it is good for the same request, from the same page, alone."""
    parts = (asked["kind"], asked["token"], asked["device"], asked["method"], asked["path"], asked["origin"])
    return key_of(*[part.encode("latin-1", "replace") for part in (*parts, asked["host"], str(asked["websocket"]))])


def concerns(grant: Grant, users: set[str], logins: set[str], devices: set[str]) -> bool:
    """Whether an invalidation of these takes the grant away."""
    return grant.user_id in users or grant.login in logins or grant.device_id in devices


def _name_of(asked: AuthorizeRequest) -> bytes:
    """What a credential is known by, however it was spelled."""
    return key_of(asked["kind"].encode(), asked["token"].encode("latin-1", "replace"))
