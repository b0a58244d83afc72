"""URLs, the local address and the choice of a proxy: pure text work, no resolver and no socket."""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from tunnel.contract import TUNNEL_PATH


class AddressError(ValueError):
    """A URL or address that cannot be used; the text is the one line shown to the user, without any password."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the daemon is. `path` starts with a slash and keeps its query; `host` has no brackets."""

    host: str
    port: int
    path: str
    tls: bool

    @property
    def authority(self) -> str:
        """`host:port` as an HTTP Host header has it: brackets around IPv6, no default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that understands CONNECT. `authorization` is the header's value, None without a user name."""

    host: str
    port: int
    tls: bool
    authorization: str | None

    def __repr__(self) -> str:  # the default one would put the password into logs
        return f"<Proxy {self.host}:{self.port}>"


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """The one local server that can be reached."""

    host: str
    port: int
    family: int | None = field(init=False, compare=False)  # AF_INET or AF_INET6 of a literal address, None of a name

    def __post_init__(self) -> None:
        try:
            found = socket.AF_INET6 if ipaddress.ip_address(self.host).version == 6 else socket.AF_INET
        except ValueError:
            found = None
        object.__setattr__(self, "family", found)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _host(text: str | None) -> str:
    if not text or any(c <= " " or c == "\x7f" for c in text):
        raise AddressError("no host name")
    if text.isascii():
        return text.lower()
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError:
        raise AddressError("the host name is not valid") from None


def parse_url(text: str) -> Endpoint:
    """The daemon's URL: ws, wss, http or https; the path is `/tunnel/connect` if none is given. Raises AddressError."""
    text = text.strip()
    if "://" not in text:
        # Words, and not a guess: with ws:// the token would go over the network as it is
        host = re.sub(r"^(?:wss?|https?):", "", text).strip("/").split("/")[0] or "cloud.example.com"
        raise AddressError(f"{text!r} has no scheme; write wss://{host}, or ws://{host} for a port without TLS")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise AddressError(f"not a URL: {error}") from None
    if parts.scheme not in ("ws", "wss", "http", "https"):
        raise AddressError(f"{parts.scheme}:// is not understood; use wss:// (or ws://, https://, http://)")
    if parts.username is not None or parts.password is not None:
        raise AddressError("a URL with a user name is not understood; use --pairing-token")
    tls = parts.scheme in ("wss", "https")
    path = quote(parts.path if parts.path not in ("", "/") else TUNNEL_PATH, safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return Endpoint(_host(parts.hostname), port or (443 if tls else 80), path, tls)


def parse_local(text: str) -> LocalAddress:
    """`host:port`, `[v6]:port`, `:port` or a bare port (127.0.0.1 then). Raises AddressError."""
    text = text.strip()
    if text.isdigit():
        text = f"127.0.0.1:{text}"
    elif text.startswith(":"):
        text = f"127.0.0.1{text}"
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        raise AddressError(f"{text!r} is not host:port") from None
    if not port or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise AddressError(f"{text!r} is not host:port")
    return LocalAddress(_host(parts.hostname), port)


def parse_proxy(text: str) -> Proxy:
    """`http://user:password@host:port` or `host:port` as found in HTTPS_PROXY. Raises AddressError."""
    url = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressError("the proxy's URL cannot be read") from None
    if parts.scheme not in ("http", "https"):
        raise AddressError(f"a proxy of the kind {parts.scheme}:// is not supported, only http:// and https://")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
    tls = parts.scheme == "https"
    return Proxy(_host(parts.hostname), port or (443 if tls else 80), tls, authorization)


def _bypassed(host: str, port: int, no_proxy: str) -> bool:
    """NO_PROXY as curl reads it: names with their subdomains, addresses, networks, an optional port, or `*`."""
    for item in (part.strip().lower() for part in no_proxy.replace(" ", ",").split(",")):
        if not item:
            continue
        if item == "*":
            return True
        name, _, wanted = item.rpartition(":")
        if name and wanted.isdigit() and (name.count(":") == 0 or name.startswith("[")):
            if int(wanted) != port:
                continue
            item = name
        item = item.strip("[]").lstrip("*").lstrip(".")
        if host == item or host.endswith(f".{item}") or _in_network(host, item):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def choose_proxy(endpoint: Endpoint, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for `endpoint` by HTTPS_PROXY (without TLS: HTTP_PROXY first), ALL_PROXY, NO_PROXY; None: direct.

    A WebSocket wants CONNECT even without TLS, hence HTTPS_PROXY for both (RFC 6455 §4.1). Lower-case names win, as
    in curl. Raises AddressError.
    """

    def value(name: str) -> str:
        return (environ.get(name.lower()) or environ.get(name) or "").strip()

    names = ("HTTPS_PROXY", "ALL_PROXY") if endpoint.tls else ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    text = next(filter(None, map(value, names)), "")
    if not text or _bypassed(endpoint.host, endpoint.port, value("NO_PROXY")):
        return None
    return parse_proxy(text)
