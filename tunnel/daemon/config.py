"""The daemon's settings, read once from the environment and frozen.

It does not know what uses them. The list of names, kinds and defaults is `tunnel.contract.SETTINGS`.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunnel.contract import PREFIX, SettingError, read_settings

_BACKSTOP_SECONDS = 5.0
"""The lanes end an idle exchange themselves and can tell the client; the switch only resets, so it comes after them."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Family:
    """The processes of one host under one parent."""

    name: str
    """Of their sockets: the parent's, new at each start."""
    urls: tuple[str, ...]
    """The `NODE_URL` of each, by number."""
    number: int
    """Of this one."""


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """Everything that one daemon is told. Times in seconds, sizes in bytes; port 0 means any free one (tests)."""

    public_host: str = "127.0.0.1"
    public_port: int = 3800
    internal_host: str = "127.0.0.1"
    internal_port: int = 3801
    node_url: str = ""  # empty: made from the internal port once it is bound
    api_url: str = "http://localhost:3721"
    secrets: tuple[str, ...] = ("",)  # the first is sent, all are accepted
    role: Literal["client", "server"] = "client"
    trusted_proxies: tuple[Network, ...] = ()
    log_level: str = "info"
    workers: int = 1  # processes under one parent, each with such a configuration of its own
    family: Family | None = None  # of a worker: the parent tells it
    # Limits
    max_sessions: int = 20_000
    max_handshakes: int = 1024
    max_streams: int = 256  # in one tunnel
    max_internal: int = 8192  # connections to the internal port
    buffer_bytes: int = 1 << 30  # of all tunnels together
    body_max: int = 1 << 30  # of a request on the fast lane, unless the API says otherwise
    share_events: bool = False  # event streams too, not only pictures
    # Browsers
    hsts: bool = False  # they are told to come by TLS alone: that is how they reach it
    cors_origins: tuple[str, ...] = ()
    """Pages that may read answers, the site's own among them."""
    development: bool = False
    language: str = "en"  # of messages, where the request asks for none that we have
    # Times
    lameduck_seconds: float = 0.0  # not ready, still serving: after SIGTERM, before the drain
    drain_seconds: float = 30.0
    interrupt_seconds: float = 2.0  # the grace after SIGINT: somebody waits at a keyboard
    open_seconds: float = 10.0
    answer_seconds: float = 60.0  # to the head of a box's answer, on the fast lane
    exchange_idle_seconds: float = 300.0  # without a byte in either direction, on the fast lane
    upgraded_idle_seconds: float = 3600.0  # the same, of an upgraded connection
    idle_seconds: float = 300.0  # the same, of a stream that the switch carries
    head_seconds: float = 10.0  # for a whole request head
    queue_seconds: float = 5.0  # that a connection waits for a slot to begin its handshake
    admit_seconds: float = 10.0  # for Django's answer about a credential, queueing included
    heartbeat_seconds: float = 10.0
    call_seconds: float = 5.0  # for one call to the API
    node: str = field(default_factory=lambda: str(uuid.uuid4()))  # new at each start

    def url(self, internal_port: int) -> str:
        """Where others reach the internal API that listens on that port."""
        return self.node_url or f"http://localhost:{internal_port}"

    @property
    def interrupt_grace(self) -> float:
        """The grace after SIGINT, never longer than the one after SIGTERM."""
        return min(self.interrupt_seconds, self.drain_seconds)


def load(environ: Mapping[str, str]) -> tuple[TunnelConfig, list[str]]:
    """The configuration, and a warning line for each unknown `VISIONA_*` name. Raises SettingError."""
    values, warnings = read_settings(environ, "tunnel")
    if not values["INTERNAL_SECRET"]:
        raise SettingError(f"{PREFIX}INTERNAL_SECRET: empty")
    production = values["ENV"] == "production"
    return (
        TunnelConfig(
            public_host=values["BIND_HOST"] or ("0.0.0.0" if production else "127.0.0.1"),  # noqa: S104 - agents come from outside
            public_port=values["TUNNEL_PORT"],
            internal_host=values["INTERNAL_BIND_HOST"],
            internal_port=values["PROXY_INTERNAL_PORT"],
            node_url=values["NODE_URL"],
            api_url=values["API_INTERNAL_URL"],
            secrets=values["INTERNAL_SECRET"],
            role=values["YAMUX_ROLE"],
            trusted_proxies=_networks(values["TRUSTED_PROXIES"]),
            log_level=values["LOG_LEVEL"],
            workers=values["TUNNEL_WORKERS"],
            max_sessions=values["TUNNEL_MAX_SESSIONS"],
            max_handshakes=values["TUNNEL_MAX_HANDSHAKES"],
            max_streams=values["TUNNEL_MAX_STREAMS"],
            buffer_bytes=values["TUNNEL_BUFFER_MB"] << 20,
            lameduck_seconds=values["LAMEDUCK_SECONDS"],
            drain_seconds=values["TUNNEL_DRAIN_SECONDS"],
            open_seconds=values["PROXY_OPEN_SECONDS"],
            answer_seconds=values["PROXY_HEAD_SECONDS"],
            exchange_idle_seconds=values["PROXY_IDLE_SECONDS"],
            upgraded_idle_seconds=values["PROXY_UPGRADE_IDLE_SECONDS"],
            idle_seconds=values["PROXY_IDLE_SECONDS"] + _BACKSTOP_SECONDS,
            body_max=values["PROXY_BODY_MAX_BYTES"],
            share_events=values["SHARE_SSE"],
            cors_origins=(*values["CORS_ALLOWED_ORIGINS"], values["PUBLIC_URL"], values["TUNNEL_PUBLIC_URL"]),
            development=not production,
            hsts=values["TUNNEL_PUBLIC_URL"].startswith("https://"),
            language=values["LANGUAGE"],
        ),
        warnings,
    )


def _networks(words: tuple[str, ...]) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(word, strict=False) for word in words)
    except ValueError as error:
        raise SettingError(f"{PREFIX}TRUSTED_PROXIES: {error}") from None
