"""The agent's life: connect, serve, reconnect for ever; a refusal does not end it, only SIGTERM does.

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
from tunnel.agent.credentials import (
    CredentialError,
    Credentials,
    DamagedError,
    load,
    new_credentials,
    only_agent,
    set_aside,
    store,
    write_state,
)
from tunnel.agent.dial import DialError
from tunnel.agent.link import Admission, Link, RefusedError
from tunnel.agent.pump import Counters, carry, why_unreachable
from tunnel.agent.settings import AgentSettings, read_pairing_token
from tunnel.agent.verdict import EXIT_OK, EXIT_REFUSED, Verdict, after_close
from tunnel.agent.version import VERSION
from tunnel.contract import CLOSE_ABUSE, CLOSE_DISABLED, CLOSE_REPLACED, CLOSE_REVOKED, CLOSE_SHUTDOWN
from tunnel.mux.connection import Connection
from tunnel.mux.stream import Stream
from tunnel.mux.transport import Transport
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind
from tunnel.protocol.limits import SessionConfig

STORE_AGAIN_SECONDS: Final = 30.0
TOKEN_LOOK_SECONDS: Final = 5.0
"""How often, after a refusal, it is looked whether the settings file has a new pairing token."""
LOCAL_LOOK_SECONDS: Final = 1.0
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
    """What the state file tells. `phase`: connecting, connected, waiting, refused (and waiting) or stopped.

    `local_answers`: whether something listens at the local address; None before the first look.
    """

    phase: str = "connecting"
    since: str = ""
    session: str = ""
    last_error: str | None = None
    last_error_at: str | None = None
    next_attempt_in: float | None = None
    local_answers: bool | None = None


@dataclass(slots=True)
class _Session:
    """One admitted connection. `settled`: it has ended, or `successor` has taken its place."""

    admission: Admission
    connection: Connection
    settled: trio.Event = field(default_factory=trio.Event)
    successor: Admission | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict("stopped"))


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
    _pairing_token: str = field(init=False, repr=False)
    _unstored: Credentials | None = field(default=None, init=False)  # what the file ought to hold, and could not take
    _why_unstored: tuple[str, str] | None = field(default=None, init=False)  # as it was logged
    _on_disk: Credentials | None = field(default=None, init=False)
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
        """Serve until stopped (or refused, if the settings say so); the exit code (`tunnel.agent.verdict`).

        Raises UsageError, CredentialError (AgentBusyError), DialError for what it cannot start with.
        """
        self._pairing_token = self.settings.pairing_token
        with only_agent(self.settings.credentials) as locked:
            if not locked:
                logs.warning("nothing can be locked: a second agent with this credential file would not be noticed")
            self._credentials = self._recall()
            endpoint = self._endpoint()
            if self._unstored is not None:
                self._try_to_store()
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

    def _recall(self) -> Credentials:
        """The stored credentials, or new ones to pair with, which are yet to be stored.

        A damaged file is set aside if there is a token to pair anew with. Raises UsageError, CredentialError.
        """
        path = self.settings.credentials
        try:
            found = load(path)
        except DamagedError as error:
            if not self._pairing_token:
                raise UsageError(f"{error}; create a pairing token and run the agent with it") from None
            kept = set_aside(path)
            logs.error("the credential file is worth nothing: pairing anew", why=str(error), kept=kept and str(kept))
            found = None
        self._on_disk = found
        if found is not None and found.candidates(self._pairing_token):
            return found
        if not self._pairing_token:
            problem = self.settings.token_problem
            raise UsageError(problem or "this box is not paired yet: run the agent once with --pairing-token")
        self._unstored = new_credentials()
        return self._unstored

    def _endpoint(self) -> Endpoint:
        stored = self._credentials.url
        if self.settings.endpoint is None:
            if not stored:
                raise UsageError("the daemon's URL is missing: --url wss://… or VISIONA_AGENT_URL")
            try:
                return parse_url(stored)
            except AddressError as error:
                raise UsageError(f"the daemon's URL in the credential file: {error}; say --url wss://…") from None
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
            if verdict.refused and self.settings.exit_on_refusal:
                self._failed(verdict.message)
                logs.error(verdict.message, exit_code=EXIT_REFUSED)
                return EXIT_REFUSED
            await self._wait(verdict)

    async def _wait(self, verdict: Verdict) -> None:
        """Say what happened, and wait as it asks for; less after a refusal, once a new pairing token turns up."""
        delay, message = self._delay(verdict)
        self._failed(message)
        self._tell("refused" if verdict.refused else "waiting", next_attempt_in=round(delay, 1))
        level = logging.ERROR if verdict.refused else logging.WARNING
        attempt = self.backoff.refusals if verdict.refused else self.backoff.attempt
        logs.event(level, message, retry_in=round(delay, 2), attempt=attempt)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_stopping, nursery.cancel_scope)
            if verdict.refused:
                nursery.start_soon(self._cancel_at_new_token, nursery.cancel_scope)
            await trio.sleep(delay)
            nursery.cancel_scope.cancel()

    def _delay(self, verdict: Verdict) -> tuple[float, str]:
        """Seconds before the next attempt, and what there is to say meanwhile."""
        if verdict.refused:
            return self.backoff.next_refusal_delay(verdict.at_least), verdict.message
        if verdict.again != "replaced":
            return self.backoff.next_delay(verdict.at_least, verdict.spread), verdict.message
        delay = self.backoff.next_replaced_delay()
        if not self.backoff.cloned:
            return delay, verdict.message
        times = f"{self.backoff.replacements} times now"
        return delay, f"{verdict.message} {times}: a copy of this box (a cloned card?); pair one of the two anew"

    async def _cancel_at_new_token(self, scope: trio.CancelScope) -> None:
        while True:
            if self._look_for_token():
                break
            await trio.sleep(TOKEN_LOOK_SECONDS)
        scope.cancel()

    def _look_for_token(self) -> bool:
        """Whether the settings file has another pairing token than the one we know; it is the one to use then."""
        if self.settings.token_file is None:
            return False
        found = read_pairing_token(self.settings.token_file)
        if not found or found == self._pairing_token:
            return False
        self._pairing_token = found
        self.backoff.start_anew()
        logs.info("there is a new pairing token", file=str(self.settings.token_file))
        return True

    async def _attempt(self, link: Link, sessions: trio.Nursery) -> Verdict:
        """Connect, and serve one session after the other for as long as each is handed over to the next."""
        self._tell("connecting")
        self._look_for_token()
        admission: Admission | None = None
        verdict = Verdict("stopped")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_stopping, nursery.cancel_scope)
            await self._look_at_local()
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
        """Try the tokens that we have, best first; only a refusal lets the next one be tried."""
        known = self._credentials.candidates(self._pairing_token)
        first, *others = sorted(known, key=self._refused.__contains__)  # stable: those refused before come last
        local = self._local_fact()
        try:
            return await link.connect(self._credentials, first, handover=handover, local=local)
        except RefusedError as error:
            if not error.verdict.refused or not others:
                raise
            level = logging.DEBUG if first in self._refused else logging.WARNING
            self._refused.add(first)
            logs.event(level, "one credential was refused, trying the other", refusal=str(error))
        return await link.connect(self._credentials, others[0], handover=handover, local=local)

    async def _look_at_local(self) -> None:
        self._local_is(await why_unreachable(self.settings.local, LOCAL_LOOK_SECONDS))

    def _local_is(self, problem: str) -> None:
        """Something listens at the local address (`problem` is empty), or why nothing answers; said when it changes."""
        answers = not problem
        if answers is self.status.local_answers:
            return
        before, self.status.local_answers = self.status.local_answers, answers
        address = str(self.settings.local)
        if problem:
            logs.warning("nothing answers at the local address; is the box's own server running?", local=address,
                         why=problem)  # fmt: skip
        elif before is not None:
            logs.info("the local address answers again", local=address)
        self._tell(self.status.phase, session=self.status.session, next_attempt_in=self.status.next_attempt_in)

    def _local_fact(self) -> str:
        """What the daemon is told of the local address (`X-VisionA-Local`)."""
        known = {True: "; listening=yes", False: "; listening=no", None: ""}[self.status.local_answers]
        return f"{self.settings.local}{known}"

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
                if error.verdict.refused:
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
        if counters.unreachable or counters.bytes_out:
            self._local_is(counters.unreachable)  # said once, not for each request of an impatient viewer
        logs.event(
            logging.DEBUG,
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
        if new == self._credentials and self._unstored is None:
            return
        self._unstored = new
        rotated = admission.session_token is not None and admission.token == self._credentials.session_token
        if not rotated:
            self._credentials = new
        # A rotated token ends the one before as soon as it is used: not before it is on disk, or a restart would find
        # a dead one there
        self._try_to_store()

    def _try_to_store(self) -> None:
        wanted = self._unstored
        if wanted is None:
            return
        try:
            store(self.settings.credentials, wanted)
        except CredentialError as error:
            words = self._unstored_words(wanted)
            if (words, str(error)) != self._why_unstored:  # once, not every 30 s
                self._why_unstored = words, str(error)
                logs.error(words, why=str(error))
        else:
            self._credentials = self._on_disk = wanted
            self._unstored = None
            if self._why_unstored is not None:
                self._why_unstored = None
                logs.info("the credential file is written now")

    def _unstored_words(self, wanted: Credentials) -> str:
        on_disk = self._on_disk.session_token if self._on_disk else ""
        if wanted.session_token == on_disk:
            return "the credential file cannot be written"
        if self._credentials == wanted:
            return "the credential is in memory only: this box must be paired anew after a restart"
        return "the new credential cannot be stored: this box goes on with the one that it has"

    async def _store_again(self) -> None:
        while self._unstored is not None:
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
