"""One attempt to reach the daemon: dial, upgrade, say who we are. Trio; it decides nothing about what comes after."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import trio

from tunnel.agent.addresses import Endpoint, choose_proxy
from tunnel.agent.credentials import Credentials
from tunnel.agent.dial import DialError, dial, tls_context
from tunnel.agent.settings import AgentSettings
from tunnel.agent.verdict import Verdict, after_foreign_answer, after_refusal, parse_retry_after, read_envelope
from tunnel.agent.version import VERSION
from tunnel.contract import (
    FEATURE_HANDOVER,
    H_AGENT,
    H_ANSWER_DEVICE_ID,
    H_ANSWER_SESSION,
    H_ANSWER_SESSION_TOKEN,
    H_CHIP,
    H_FIRMWARE,
    H_HANDOVER,
    H_INSTANCE,
    H_LOCAL,
    H_REQUEST_ID,
    H_SERIAL,
    SESSION_PREFIX,
    token_prefix,
)
from tunnel.mux.transport import Transport
from tunnel.websocket.handshake import HandshakeError, HandshakeRefused, client_transport

DIAL_SECONDS: Final = 15.0
UPGRADE_SECONDS: Final = 30.0
FEATURES: Final = ("keepalive", FEATURE_HANDOVER)


@dataclass(frozen=True, slots=True)
class Admission:
    """The daemon let us in. `session_token` is a new or rotated one to store, None to go on as before."""

    transport: Transport
    token: str = field(repr=False)
    session: str
    device_id: str
    session_token: str | None = field(repr=False)
    request_id: str


class RefusedError(Exception):
    """The upgrade was answered with another status than 101; `verdict` says who did it and what to do next."""

    def __init__(self, status: int, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.status = status
        self.verdict = verdict


def request_headers(
    settings: AgentSettings, credentials: Credentials, token: str, handover: str = "", local: str = ""
) -> list[tuple[str, str]]:
    """What the upgrade request says of us, besides what WebSocket itself needs."""
    named = f"visiona-agent/{VERSION}; features={','.join(FEATURES)}"
    headers = [("Authorization", f"Bearer {token}"), (H_AGENT, named), (H_INSTANCE, credentials.instance)]
    facts = ((H_SERIAL, settings.serial), (H_CHIP, settings.chip), (H_FIRMWARE, settings.firmware))
    return headers + [(name, value) for name, value in (*facts, (H_HANDOVER, handover), (H_LOCAL, local)) if value]


def read_refusal(refused: HandshakeRefused) -> RefusedError:
    """What an answer other than 101 means: the daemon's own envelope is its word, anything else somebody else's."""
    wait = parse_retry_after(refused.header("Retry-After"), refused.header("Date"), datetime.now(UTC))
    own = read_envelope(refused.status, refused.body)
    if own is None:
        foreign = after_foreign_answer(refused.status, refused.header("Location") or "", wait)
        return RefusedError(refused.status, foreign)
    return RefusedError(refused.status, after_refusal(refused.status, *own, wait))


class Link:
    """Makes connections by the settings and the environment's proxies. Raises DialError where no attempt can work."""

    def __init__(self, settings: AgentSettings, endpoint: Endpoint, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self.endpoint = endpoint
        self.proxy = choose_proxy(endpoint, environ)
        needed = endpoint.tls or (self.proxy is not None and self.proxy.tls)
        # Once: a context of the system's CAs costs megabytes and tens of milliseconds
        self._context: ssl.SSLContext | None = tls_context(settings.ca_file) if needed else None

    async def connect(self, credentials: Credentials, token: str, *, handover: str = "", local: str = "") -> Admission:
        """One attempt with one token; `handover` is the session that the new one takes over from.

        `local` is the local address and whether something listens there, as `X-VisionA-Local` has it.

        Raises DialError (also for a timeout), RefusedError.
        """
        try:
            with trio.fail_after(DIAL_SECONDS):
                stream = await dial(self.endpoint, self.proxy, self._context)
        except trio.TooSlowError:
            raise DialError(f"{self.endpoint.authority}: no connection within {DIAL_SECONDS:.0f} s") from None
        upgraded = False
        try:
            with trio.fail_after(UPGRADE_SECONDS):
                transport, answer = await client_transport(
                    stream,
                    self.endpoint.authority,
                    self.endpoint.path,
                    request_headers(self.settings, credentials, token, handover, local),
                )
            upgraded = True
        except HandshakeRefused as refused:
            raise read_refusal(refused) from refused
        except HandshakeError as error:
            raise DialError(f"{self.endpoint.authority}: {error}") from error
        except trio.TooSlowError:
            raise DialError(f"{self.endpoint.authority}: no answer within {UPGRADE_SECONDS:.0f} s") from None
        except trio.BrokenResourceError as error:
            raise DialError(f"{self.endpoint.authority}: the connection was lost before it was answered") from error
        finally:
            if not upgraded:
                # Closing must not wait for a peer that has just shown that it does not answer
                await trio.aclose_forcefully(stream)
        found = {name.lower(): value for name, value in answer}
        session_token = found.get(H_ANSWER_SESSION_TOKEN.lower())
        return Admission(
            transport=transport,
            token=token,
            session=found.get(H_ANSWER_SESSION.lower(), ""),
            device_id=found.get(H_ANSWER_DEVICE_ID.lower(), ""),
            session_token=session_token if session_token and token_prefix(session_token) == SESSION_PREFIX else None,
            request_id=found.get(H_REQUEST_ID.lower(), ""),
        )
