"""From a URL to an open byte stream: TCP, an HTTP CONNECT proxy, TLS. Trio; it knows no WebSocket and no yamux."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import trio

from tunnel.agent.addresses import Endpoint, Proxy

MAX_PROXY_HEAD: Final = 16 * 1024
"""Of a proxy's answer to CONNECT, interim heads included."""
KEEPALIVE_IDLE: Final = 15
KEEPALIVE_INTERVAL: Final = 8
KEEPALIVE_COUNT: Final = 3  # 15 + 3 times 8 = 39 s: the kernel gives a dead link up in the time that we promise
UNSENT_LOW_WATER: Final = 128 * 1024

ByteStream = trio.SocketStream | trio.SSLStream[trio.SocketStream] | trio.SSLStream[trio.SSLStream[trio.SocketStream]]


class DialError(Exception):
    """No connection; the text is the one line for the log, without credentials."""


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The system's CAs, and those of `ca_file` (PEM) too. Raises DialError for a file without certificates."""
    try:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise DialError(f"{ca_file}: no certificates can be read from it: {error}") from error
    # The daemon speaks HTTP/1.1 alone; a TLS terminator that offers h2 must not choose it.
    context.set_alpn_protocols(["http/1.1"])
    return context


def tune(stream: trio.SocketStream) -> None:
    """No Nagle delay, TCP keepalive, and few unsent bytes in the kernel, so that a pong is not behind megabytes."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_NOTSENT_LOWAT", UNSENT_LOW_WATER),
    ):
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)


async def dial(endpoint: Endpoint, proxy: Proxy | None, context: ssl.SSLContext | None) -> ByteStream:
    """An open stream to `endpoint`, encrypted if it says so. Raises DialError; the caller bounds the time."""
    first: Endpoint | Proxy = proxy or endpoint
    try:
        # trio tries the addresses of both families in turn, 0.25 s apart (RFC 8305)
        tcp = await trio.open_tcp_stream(first.host, first.port)
    except OSError as error:
        raise DialError(f"{first.host}:{first.port} cannot be reached: {_reason(error)}") from error
    try:
        tune(tcp)
        if proxy is None:
            return await _encrypt(tcp, endpoint, context) if endpoint.tls else tcp
        if not proxy.tls:
            await connect_through(tcp, endpoint, proxy)
            return await _encrypt(tcp, endpoint, context) if endpoint.tls else tcp
        outer = await _encrypt(tcp, proxy, context)
        await connect_through(outer, endpoint, proxy)
        return await _encrypt(outer, endpoint, context) if endpoint.tls else outer
    except (trio.BrokenResourceError, ssl.SSLError, OSError) as error:
        await trio.aclose_forcefully(tcp)
        raise DialError(f"{first.host}:{first.port}: {_reason(error)}") from error
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise


def _cause(error: BaseException) -> BaseException:
    """The innermost cause: trio wraps TLS errors, and happy eyeballs gives a group of them."""
    while True:
        if error.__cause__ is not None:
            error = error.__cause__
        elif isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            return error


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


_NO_TLS: Final = frozenset(
    {
        "BAD_RECORD_TYPE",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNKNOWN_PROTOCOL",
        "WRONG_SSL_VERSION",
        "WRONG_VERSION_NUMBER",
    }
)
"""What OpenSSL calls an answer that is no TLS at all; which of them depends on its version and on the answer."""
_CLOCK: Final = {9: "it is not valid yet", 10: "it has expired"}  # X509_V_ERR_CERT_NOT_YET_VALID, …_HAS_EXPIRED


def _tls_reason(error: BaseException, plain: str) -> str:
    """Why TLS did not come about, in words; `plain` is what to write instead if the peer speaks none."""
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _CLOCK:
            today = f"{datetime.now(UTC):%Y-%m-%d}"
            return f"its certificate is not trusted: {_CLOCK[cause.verify_code]} (this box's clock says {today})"
        return f"its certificate is not trusted: {cause.verify_message} (a private CA? --ca-file)"
    if isinstance(cause, ssl.SSLEOFError) or (isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS):
        return f"this port speaks no TLS; use {plain}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {(cause.reason or str(cause)).replace('_', ' ').lower()}"
    return f"the connection ended within the TLS handshake: {_reason(error)} (does this port speak TLS? else {plain})"


_Inner = TypeVar("_Inner", trio.SocketStream, trio.SSLStream[trio.SocketStream])


async def _encrypt(stream: _Inner, peer: Endpoint | Proxy, context: ssl.SSLContext | None) -> trio.SSLStream[_Inner]:
    secured = trio.SSLStream(stream, context or tls_context(None), server_hostname=peer.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except (trio.BrokenResourceError, ssl.SSLError, OSError) as error:
        plain = f"ws://{peer.host}:{peer.port}" if isinstance(peer, Endpoint) else "http:// for the proxy"
        raise DialError(f"{peer.host}:{peer.port}: {_tls_reason(error, plain)}") from error
    return secured


async def connect_through(stream: trio.abc.Stream, endpoint: Endpoint, proxy: Proxy) -> None:
    """Ask an HTTP proxy for a tunnel to `endpoint` (RFC 9110 §9.3.6). Raises DialError with the proxy's status."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    target = f"{host}:{endpoint.port}"
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.authorization:
        head += f"Proxy-Authorization: {proxy.authorization}\r\n"
    await stream.send_all(head.encode("ascii") + b"\r\n")
    status, left = 100, MAX_PROXY_HEAD
    while 100 <= status < 200:  # an interim head says nothing: the answer comes behind it (RFC 9110 §15.2)
        answer = await _proxy_head(stream, proxy, left)
        left -= len(answer)
        status = _proxy_status(answer, proxy)
    if not 200 <= status < 300:
        why = "it wants a user name and a password" if status == 407 else "it refused the tunnel"
        raise DialError(f"the proxy {proxy.host}:{proxy.port} answered {status}: {why}")


async def _proxy_head(stream: trio.abc.Stream, proxy: Proxy, limit: int) -> bytes:
    """One head of at most `limit` bytes, its blank line included. Raises DialError."""
    answer = bytearray()
    # One byte at a time: what follows the blank line belongs to the tunnel, and nothing may be read past it. It is
    # one short head a connection.
    while not answer.endswith((b"\r\n\r\n", b"\n\n")):
        byte = await stream.receive_some(1)
        if not byte or len(answer) >= limit:
            raise DialError(f"the proxy {proxy.host}:{proxy.port} did not answer CONNECT with an HTTP head")
        answer += byte
    return bytes(answer)


def _proxy_status(head: bytes, proxy: Proxy) -> int:
    words = head.split(b"\n", 1)[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not (words[1].isdigit() and len(words[1]) == 3):
        raise DialError(f"the proxy {proxy.host}:{proxy.port} does not speak HTTP/1")
    return int(words[1])
