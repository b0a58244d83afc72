"""Calls to servers whose URLs users name: bounded in time and bytes, and never to an address that users may not name.

One exchange on a connection of its own, no redirect followed. The name is resolved once; every address that it has must
be allowed, and the connection goes to one of those that were checked, so that DNS cannot change its mind in between.
The usual clients offer neither that nor a deadline for the whole of a call, whatever its pieces do.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self, cast
from urllib.parse import SplitResult, urlsplit

import httptools
from django.utils.translation import gettext as _

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HEAD_BYTES: Final = 32 << 10
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+\Z")
_PORTS: Final = {"http": 80, "https": 443}
_LOCAL_NAMES: Final = ("localhost", "local", "internal", "home.arpa", "localdomain")


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# IANA's registries of special-purpose addresses (RFC 6890), in full: what `ipaddress` takes for global has changed from
# one release of Python to the next.
_SPECIAL: Final = _networks(
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)  # fmt: skip
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
_NEVER: Final = _networks(
    "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128", "fd00:ec2::254/128", "fe80::/10", "ff00::/8",
)  # fmt: skip
"""Addresses that are refused even where private ones are allowed: metadata services, multicast, unspecified."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class Refused(ValueError):
    """The URL or its address is one that we do not call. The text is for the person who named it."""


class Unanswered(OSError):
    """No answer: no connection, an untrusted certificate, too slow, or not HTTP. The text says which."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Where calls may go; public addresses by https always may.

    Attributes:
        private: private and loopback addresses are allowed, by plain http too.
        networks: further networks that are allowed, of whatever kind.
        plain: plain http is allowed to public addresses too.
    """

    private: bool = False
    networks: tuple[Network, ...] = ()
    plain: bool = False

    @classmethod
    def of(cls, *, private: bool, networks: Iterable[str], plain: bool) -> Self:
        return cls(private, tuple(ipaddress.ip_network(text, strict=False) for text in networks), plain)

    def allows(self, address: Address) -> bool:
        """Whether a connection may go there. An IPv6 address that embeds an IPv4 address is judged by the latter."""
        if any(address in network for network in self.networks):
            return True
        inner = _carried(address)
        if inner is not None:
            return self.allows(inner)
        if self.private:
            return not any(address in network for network in _NEVER)
        if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_V6:
            return False
        return address.is_global and not any(address in network for network in _SPECIAL)


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for (mapped, RFC 4291; NAT64, RFC 6052), None if it does not."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None


def check_url(url: str, policy: Policy) -> SplitResult:
    """The parts of a URL that may be called as far as its text tells; its address is judged when it is called.

    Raises Refused.
    """
    if not _PRINTABLE.match(url) or "\\" in url:
        raise Refused(_("Not a URL: only printable ASCII; encode the rest."))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused(_("Not a URL that can be called.")) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise Refused(_("It must start with https:// and name a host."))
    if parts.scheme == "http" and not (policy.plain or policy.private or policy.networks):
        raise Refused(_("It must start with https://."))
    if parts.username is not None or parts.password is not None:
        raise Refused(_("It must hold no credentials; the signature tells who calls."))
    if parts.fragment or url.endswith("#"):
        raise Refused(_("It must have no fragment."))
    if port is not None and port not in _PORTS.values() and not 1024 <= port <= 65535:
        raise Refused(_("Its port must be 80, 443, or 1024 and above."))
    _check_host(parts.hostname, policy)
    return parts


def _check_host(host: str, policy: Policy) -> None:
    address = _literal(host)
    if address is not None:
        if not policy.allows(address):
            raise Refused(_("Its address is private or reserved."))
        return
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(map(_LABEL.match, labels)):
        raise Refused(_("Its host is not a name or an address."))
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):  # what some resolvers read as an address: 127.1, 0x7f000001
        raise Refused(_("Its host is not a name or an address."))
    ends = tuple("." + name for name in _LOCAL_NAMES)
    if not (policy.private or policy.networks) and ("." + ".".join(labels)).endswith(ends):
        raise Refused(_("Its address is private or reserved."))


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's status, and its body up to the `max_body` of the call."""

    status: int
    body: bytes = b""


def post(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    policy: Policy,
    connect_seconds: float,
    total_seconds: float,
    max_body: int = 0,
) -> Reply:
    """`exchange` with the method POST."""
    return exchange(
        "POST", url, body, headers=headers, policy=policy,
        connect_seconds=connect_seconds, total_seconds=total_seconds, max_body=max_body,
    )  # fmt: skip


def exchange(
    method: str,
    url: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str],
    policy: Policy,
    connect_seconds: float,
    total_seconds: float,
    max_body: int = 0,
) -> Reply:
    """Send one request and read the answer.

    Args:
        body: None sends no body and no Content-Length.
        url: checked here again: what was allowed when it was stored need not be so now.
        headers: beside Host, Content-Length and Connection, which are ours.
        connect_seconds: to resolve, connect and agree on TLS.
        total_seconds: for everything together.
        max_body: bytes of the answer's body to read; with 0 only the status is read.

    Raises Refused (nothing was sent), and Unanswered (whether it was received is not known).
    """
    parts = check_url(url, policy)
    deadline = time.monotonic() + total_seconds
    connected_by = min(deadline, time.monotonic() + connect_seconds)
    try:
        with _connect(parts, policy, connected_by) as connection:
            connection.settimeout(_left(deadline))
            connection.sendall(_request(method, parts, body, headers))
            return _Answer(max_body).read(connection, deadline)
    except TimeoutError:
        raise Unanswered("timed out") from None
    except ssl.SSLCertVerificationError as error:
        raise Unanswered(f"its certificate is not trusted: {error.verify_message}"[:200]) from None
    except ssl.SSLError as error:
        raise Unanswered(f"TLS failed: {error.reason or 'broken'}"[:200]) from None
    except (Unanswered, Refused):
        raise
    except OSError as error:
        raise Unanswered((error.strerror or type(error).__name__).lower()[:200]) from None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# --- connecting -------------------------------------------------------------------------------------------------------
def _connect(parts: SplitResult, policy: Policy, deadline: float) -> socket.socket:
    host, port = cast("str", parts.hostname), parts.port or _PORTS[parts.scheme]
    addresses = resolve(host, port, _left(deadline))
    if not addresses or not all(map(policy.allows, addresses)):
        raise Refused(_("Its address is private or reserved."))
    if parts.scheme == "http" and not policy.plain and not all(_private(policy, each) for each in addresses):
        raise Refused(_("It must start with https://."))
    plain = _open(addresses, port, deadline)
    if parts.scheme == "http":
        return plain
    try:
        plain.settimeout(_left(deadline))
        return _tls().wrap_socket(plain, server_hostname=host.removesuffix("."))
    except BaseException:
        plain.close()
        raise


def _private(policy: Policy, address: Address) -> bool:
    """Whether the address is allowed as a private one or by `networks` only: plain http may be used there."""
    return not Policy().allows(address)


def _open(addresses: Sequence[Address], port: int, deadline: float) -> socket.socket:
    """A connection to the first of four addresses at most that accepts; each attempt has its share of the time left."""
    failure: OSError | None = None
    tried = addresses[:4]
    for index, address in enumerate(tried):
        share = _left(deadline) / (len(tried) - index)
        try:
            return socket.create_connection((str(address), port), timeout=share)
        except OSError as error:
            failure = error
    raise failure or TimeoutError


def resolve(host: str, port: int, seconds: float) -> list[Address]:
    """All addresses of the host, each once. Raises Unanswered.

    The system's resolver has no deadline, so it is called in one of a few threads: where it hangs, later callers are
    refused in time and do not hang too.
    """
    address = _literal(host)
    if address is not None:
        return [address]
    asked = _resolvers().submit(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    try:
        found = asked.result(seconds)
    except FutureTimeout:
        asked.cancel()
        raise Unanswered("its name could not be resolved in time") from None
    except (OSError, UnicodeError):
        raise Unanswered("its name could not be resolved") from None
    texts = [str(sockaddr[0]).partition("%")[0] for *_kind, sockaddr in found]
    return [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]


@cache
def _resolvers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, thread_name_prefix="resolve")


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


# --- one exchange -----------------------------------------------------------------------------------------------------
def _request(method: str, parts: SplitResult, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    length = {} if body is None else {"Content-Length": str(len(body))}
    head = {"Host": parts.netloc, **headers, **length, "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


class _Answer:
    """Reads one answer; llhttp is strict about its form. Interim answers (1xx) are passed over."""

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._parser: Any = httptools.HttpResponseParser(self)
        self._status = 0
        self._done = False
        self._framed = False
        self._body = bytearray()

    def read(self, connection: socket.socket, deadline: float) -> Reply:
        seen = 0
        try:
            while not self._done:
                connection.settimeout(_left(deadline))
                data = connection.recv(16 << 10)
                if not data:
                    break
                seen += len(data)
                self._parser.feed_data(data)
                if seen > MAX_HEAD_BYTES + self._max_body or len(self._body) > self._max_body:
                    raise Unanswered("it answered more than it was asked for")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # 101: nobody asked for another protocol
            if not self._done:
                raise Unanswered("it did not answer in HTTP") from None
        if not self._status:
            raise Unanswered("it closed the connection without an answer")
        if not self._done and self._max_body and self._framed:
            raise Unanswered("its answer was cut short")
        return Reply(self._status, bytes(self._body))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Without either of these the body ends with the connection (RFC 9112 §6.3)."""
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
            self._done = not self._max_body

    def on_body(self, data: bytes) -> None:
        if self._max_body:
            self._body += data

    def on_message_complete(self) -> None:
        self._done = self._done or bool(self._status)
