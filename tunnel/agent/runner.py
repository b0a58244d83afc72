"""The agent's life: connect, serve, reconnect for ever; end on SIGTERM, or when the daemon says that it is over.

Who owns what: `Agent.run` owns the loop; each session has one nursery with the connection, the acceptor and a task a
stream, which ends with the session. A session whose daemon is about to end is handed over to the next one, and finishes
its streams beside it. Decisions stand in `verdict`, `backoff` and `credentials`.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import trio

from tunnel.agent import logs
from tunnel.agent.addresses import AddressError, Endpoint, parse_url
from tunnel.agent.backoff import Backoff
from tunnel.agent.credentials import CredentialError, Credentials, load_or_create, only_agent, store, write_state
from tunnel.agent.dial import DialError
from tunnel.agent.link import Admission, Link, RefusedError
from tunnel.agent.pump import Counters, carry
from tunnel.agent.settings import AgentSettings
from tunnel.agent.verdict import EXIT_OK, Verdict, after_close
from tunnel.agent.version import VERSION
from tunnel.contract import CLOSE_ABUSE, CLOSE_DISABLED, CLOSE_REPLACED, CLOSE_REVOKED, CLOSE_SHUTDOWN
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind
from tunnel.protocol.limits import SessionConfig
from tunnel.runtime.connection import Connection
from tunnel.runtime.stream import Stream
from tunnel.runtime.transport import Transport

STORE_AGAIN_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 4.0
QUIET_SECONDS: Final = 1.5
LOOK_SECONDS: Final = 0.1
AWAY_SECONDS: Final = 0.25
"""How often a session looks whether its daemon has said that it goes."""
HANDOVER_PAUSE: Final = (0.25, 8.0)
"""Between two attempts to reach another daemon while ours is still there: at random up to this, which grows."""
DECISIVE: Final = frozenset({CLOSE_REVOKED, CLOSE_DISABLED, CLOSE_REPLACED, CLOSE_ABUSE})
"""Close codes that count even if our own end had seen something else first."""
ROLE_HINT: Final = "both ends may have the same yamux role: VISIONA_YAMUX_ROLE must be what the daemon has"


class UsageError(Exception):
    """The agent cannot start with what it was told; the text is the one line shown."""


@dataclass(slots=True)
class Status:
    """What the state file tells. `phase`: connecting, connected, waiting or stopped."""

    phase: str = "connecting"
    since: str = ""
    session: str = ""
    last_error: str | None = None
    last_error_at: str | None = None
    next_attempt_in: float | None = None


@dataclass(slots=True)
class _Session:
    """One admitted connection. `settled`: it has ended, or `successor` has taken its place."""

    admission: Admission
    connection: Connection
    settled: trio.Event = field(default_factory=trio.Event)
    successor: Admission | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict("stopped", EXIT_OK))


@dataclass(slots=True)
class Agent:
    """One agent. `environ` names the proxies; `backoff` and `make_link` are other ones in tests."""

    settings: AgentSettings
    environ: Mapping[str, str]
    backoff: Backoff = field(default_factory=Backoff)
    make_link: Callable[[AgentSettings, Endpoint, Mapping[str, str]], Link] = Link
    status: Status = field(default_factory=Status)
    _credentials: Credentials = field(init=False)
    _refused: set[str] = field(default_factory=set, init=False, repr=False)  # tokens: a stale one is tried once
    _unreachable: bool = field(default=False, init=False)
    _stored: bool = field(default=True, init=False)
    _stopping: trio.Event = field(default_factory=trio.Event, init=False)
    _serving: dict[Stream, Counters] = field(default_factory=dict, init=False)

    def stop(self) -> None:
        """End gracefully: no new streams, a few seconds for those in flight, then a clean close. From any task."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    async def run(self) -> int:
        """Serve until stopped or refused for good; the exit code (`tunnel.agent.verdict`).

        Raises UsageError, CredentialError (AgentBusyError), DialError for what no later attempt could mend.
        """
        with only_agent(self.settings.credentials):
            self._credentials = load_or_create(self.settings.credentials)
            endpoint = self._endpoint()
            if not self._credentials.candidates(self.settings.pairing_token):
                raise UsageError("this box is not paired yet: run the agent once with --pairing-token")
            try:
                link = self.make_link(self.settings, endpoint, self.environ)
            except AddressError as error:
                raise UsageError(f"proxy: {error}") from None
            logs.info(
                "agent started",
                url=endpoint.url,
                local=str(self.settings.local),
                proxy=f"{link.proxy.host}:{link.proxy.port}" if link.proxy else None,
                device=self._credentials.device_id or None,
            )
            code = await self._for_ever(link)
            self._tell("stopped")
            logs.info("agent stopped", exit_code=code)
            return code

    def _endpoint(self) -> Endpoint:
        stored = self._credentials.url
        if self.settings.endpoint is None:
            if not stored:
                raise UsageError("the daemon's URL is missing: --url wss://… or VISIONA_AGENT_URL")
            return parse_url(stored)
        if stored and stored != self.settings.endpoint.url:
            logs.warning("the URL differs from the one this box was paired at", url=self.settings.endpoint.url)
        return self.settings.endpoint

    async def _for_ever(self, link: Link) -> int:
        async with trio.open_nursery() as sessions:
            code = await self._again_and_again(link, sessions)
            if not self._stopping.is_set():  # else those that were handed over end in order as well
                sessions.cancel_scope.cancel()
        return code

    async def _again_and_again(self, link: Link, sessions: trio.Nursery) -> int:
        while True:
            try:
                verdict = await self._attempt(link, sessions)
            except Exception as error:  # noqa: BLE001 - logged whole: an unforeseen fault must not end the agent
                logs.log.exception("internal error")
                verdict = Verdict(f"internal error: {type(error).__name__}")
            if self._stopping.is_set():
                return EXIT_OK
            self._failed(verdict.message)
            if verdict.exit_code is not None:
                logs.error(verdict.message, exit_code=verdict.exit_code)
                return verdict.exit_code
            delay = self.backoff.next_delay(verdict.at_least, verdict.spread)
            self._tell("waiting", next_attempt_in=round(delay, 1))
            logs.warning(verdict.message, retry_in=round(delay, 2), attempt=self.backoff.attempt)
            with trio.move_on_after(delay):
                await self._stopping.wait()

    async def _attempt(self, link: Link, sessions: trio.Nursery) -> Verdict:
        """Connect, and serve one session after the other for as long as each is handed over to the next."""
        self._tell("connecting")
        admission: Admission | None = None
        verdict = Verdict("stopped", EXIT_OK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_stopping, nursery.cancel_scope)
            try:
                admission = await self._admission(link)
            except DialError as error:
                verdict = Verdict(str(error))
            except RefusedError as error:
                verdict = error.verdict
            nursery.cancel_scope.cancel()
        while admission is not None:
            session = self._begin(admission, link.endpoint)
            sessions.start_soon(self._serve, session, link)
            await session.settled.wait()
            verdict, admission = session.verdict, session.successor
        return verdict

    async def _cancel_when_stopping(self, scope: trio.CancelScope) -> None:
        await self._stopping.wait()
        scope.cancel()

    async def _admission(self, link: Link, handover: str = "") -> Admission:
        """Try the tokens that we have, best first; only a 401 lets the next one be tried."""
        known = self._credentials.candidates(self.settings.pairing_token)
        first, *others = sorted(known, key=self._refused.__contains__)  # stable: those refused before come last
        try:
            return await link.connect(self._credentials, first, handover=handover)
        except RefusedError as error:
            if error.status != 401 or not others:
                raise
            self._refused.add(first)
            logs.warning("one credential was refused, trying the other", refusal=str(error))
        return await link.connect(self._credentials, others[0], handover=handover)

    def _begin(self, admission: Admission, endpoint: Endpoint) -> _Session:
        self._remember(admission, endpoint)
        connection = Connection(
            admission.transport,
            role=Role.SERVER if self.settings.yamux_role == "server" else Role.CLIENT,
            config=SessionConfig.for_agent(),
            accept_streams=True,
            name=admission.session,
        )
        self._tell("connected", session=admission.session)
        return _Session(admission, connection)

    async def _serve(self, session: _Session, link: Link) -> None:
        try:
            await self._session(session, link)
        except Exception as error:  # noqa: BLE001 - logged whole: an unforeseen fault must not end the agent
            logs.log.exception("internal error")
            session.verdict = Verdict(f"internal error: {type(error).__name__}")
        finally:
            session.settled.set()

    async def _session(self, session: _Session, link: Link) -> None:
        admission, connection = session.admission, session.connection
        began = trio.current_time()
        facts: dict[str, Any] = {"session": admission.session or None, "device": self._credentials.device_id or None}
        logs.info("connected", **facts, request_id=admission.request_id or None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept, connection, nursery)
            nursery.start_soon(self._end_gracefully, connection)
            nursery.start_soon(self._store_again)
            nursery.start_soon(self._hand_over, session, link)
            await connection.run()
            nursery.cancel_scope.cancel()
        lasted = trio.current_time() - began
        if session.successor is None:
            self.backoff.connected_for(lasted)
        end = connection.end_reason
        reason = {"reason": end.text, "close_code": end.close_code} if end else {}
        logs.info("disconnected", **facts, seconds=round(lasted, 1), **reason)
        session.verdict = _after_session(connection, admission.transport)

    async def _hand_over(self, session: _Session, link: Link) -> None:
        """Once the daemon has said that it goes, find another one before it has gone."""
        while True:
            if session.connection.peer_going_away:
                break
            await trio.sleep(AWAY_SECONDS)
        pause = HANDOVER_PAUSE[0]
        while not self._stopping.is_set():
            try:
                session.successor = await self._admission(link, session.admission.session)
            except DialError as error:
                logs.info("no other daemon yet", why=str(error))
            except RefusedError as error:
                if error.verdict.exit_code is not None:
                    return  # what that means is decided when this session has ended
                logs.info("no other daemon yet", why=str(error))
            else:
                logs.info("handed over", session=session.admission.session, to=session.successor.session)
                session.settled.set()
                return
            await trio.sleep(random.uniform(0, pause))  # noqa: S311 - spreads load, guards nothing
            pause = min(pause * 2, HANDOVER_PAUSE[1])

    async def _accept(self, connection: Connection, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await connection.accept_stream()
            except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
                return
            nursery.start_soon(self._carry, connection.name, stream)

    async def _carry(self, session: str, stream: Stream) -> None:
        counters = self._serving[stream] = Counters()

        def passes(request_id: str) -> None:
            logs.info("request", request_id=request_id or None, session=session, stream=stream.stream_id)

        try:
            await carry(stream, self.settings.local, counters, passes)
        finally:
            del self._serving[stream]
        unreachable = counters.outcome.startswith("local server unreachable")
        # Said once, not for each request of an impatient viewer
        level = logging.WARNING if unreachable and not self._unreachable else logging.DEBUG
        self._unreachable = unreachable
        logs.event(
            level,
            "stream ended",
            session=session,
            device=self._credentials.device_id or None,
            stream=stream.stream_id,
            outcome=counters.outcome,
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
        )

    async def _end_gracefully(self, connection: Connection) -> None:
        """On `stop`: GoAway(0), what is in flight gets a few seconds, then a clean close.

        A stream that was quiet for a while after an answer is an idle connection, which nobody need wait for.
        """
        await self._stopping.wait()
        connection.go_away(0)
        with trio.move_on_after(GRACE_SECONDS):
            quiet, moved = 0.0, -1
            while self._serving and quiet < QUIET_SECONDS:
                await trio.sleep(LOOK_SECONDS)
                owed = any(counters.owes_answer for counters in self._serving.values())
                before, moved = moved, self._moved()
                quiet = 0.0 if owed or moved != before else quiet + LOOK_SECONDS
        await connection.aclose(CLOSE_SHUTDOWN, "agent stops")

    def _moved(self) -> int:
        return sum(counters.bytes_in + counters.bytes_out for counters in self._serving.values())

    def _remember(self, admission: Admission, endpoint: Endpoint) -> None:
        """Store what the daemon gave before anything is served; a disk that is full does not keep the box away."""
        new = self._credentials.admitted(
            token=admission.token,
            session_token=admission.session_token,
            device_id=admission.device_id,
            url=endpoint.url,
        )
        if new != self._credentials or not self._stored:
            self._credentials, self._stored = new, False
            self._try_to_store()

    def _try_to_store(self) -> None:
        try:
            store(self.settings.credentials, self._credentials)
            self._stored = True
        except CredentialError as error:
            logs.error("the credential is in memory only: this box must be paired anew after a restart", why=str(error))

    async def _store_again(self) -> None:
        while not self._stored:
            await trio.sleep(STORE_AGAIN_SECONDS)
            self._try_to_store()

    def _failed(self, message: str) -> None:
        self.status.last_error, self.status.last_error_at = message, _now()

    def _tell(self, phase: str, *, session: str = "", next_attempt_in: float | None = None) -> None:
        """Write the state file; what cannot be written is not worth stopping for."""
        if phase != self.status.phase or not self.status.since:
            self.status.since = _now()
        self.status.phase, self.status.session, self.status.next_attempt_in = phase, session, next_attempt_in
        state = asdict(self.status) | {
            "pid": os.getpid(),
            "version": VERSION,
            "url": self._credentials.url or (self.settings.endpoint.url if self.settings.endpoint else ""),
            "local": str(self.settings.local),
            "device_id": self._credentials.device_id,
            "attempt": self.backoff.attempt,
            "updated_at": _now(),
        }
        try:
            write_state(self.settings.credentials, state)
        except CredentialError as error:
            logs.debug("the state file cannot be written", why=str(error))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _after_session(connection: Connection, transport: Transport) -> Verdict:
    """What ended the session decides: a close code of the daemon's, or what our own end saw."""
    end = connection.end_reason
    code = transport.close_code
    if end is None or end.remote or code in DECISIVE:
        return after_close(code, transport.close_reason)
    if end.kind is EndKind.PROTOCOL:
        hint = f"; {ROLE_HINT}" if "parity" in end.text else ""
        return Verdict(f"the daemon broke the protocol: {end.text}{hint}")
    return Verdict(f"this end closed the connection: {end.text}")
