"""From a URL to an open byte stream: TCP, an HTTP CONNECT proxy, TLS. Trio; it knows no WebSocket and no yamux."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final

import trio

from tunnel.agent.addresses import Endpoint, Proxy

MAX_PROXY_HEAD: Final = 16 * 1024
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
        return await _encrypt_again(outer, endpoint, context) if endpoint.tls else outer
    except (trio.BrokenResourceError, ssl.SSLError, OSError) as error:
        await trio.aclose_forcefully(tcp)
        raise DialError(f"{endpoint.host}:{endpoint.port}: {_reason(error)}") from error
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise


def _reason(error: BaseException) -> str:
    """The words of the innermost cause: trio wraps TLS errors, and happy eyeballs gives a group of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message} (a private CA? --ca-file)"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


async def _encrypt(
    stream: trio.SocketStream, peer: Endpoint | Proxy, context: ssl.SSLContext | None
) -> trio.SSLStream[trio.SocketStream]:
    secured = trio.SSLStream(stream, context or tls_context(None), server_hostname=peer.host, https_compatible=True)
    await secured.do_handshake()
    return secured


async def _encrypt_again(
    stream: trio.SSLStream[trio.SocketStream], endpoint: Endpoint, context: ssl.SSLContext | None
) -> trio.SSLStream[trio.SSLStream[trio.SocketStream]]:
    secured = trio.SSLStream(stream, context or tls_context(None), server_hostname=endpoint.host, https_compatible=True)
    await secured.do_handshake()
    return secured


async def connect_through(stream: trio.abc.Stream, endpoint: Endpoint, proxy: Proxy) -> None:
    """Ask an HTTP proxy for a tunnel to `endpoint` (RFC 9110 §9.3.6). Raises DialError with the proxy's status."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    target = f"{host}:{endpoint.port}"
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.authorization:
        head += f"Proxy-Authorization: {proxy.authorization}\r\n"
    await stream.send_all(head.encode("ascii") + b"\r\n")
    answer = bytearray()
    # One byte at a time: what follows the blank line belongs to the tunnel, and nothing may be read past it. It is
    # one short head a connection.
    while not answer.endswith((b"\r\n\r\n", b"\n\n")):
        byte = await stream.receive_some(1)
        if not byte or len(answer) >= MAX_PROXY_HEAD:
            raise DialError(f"the proxy {proxy.host}:{proxy.port} did not answer CONNECT with an HTTP head")
        answer += byte
    words = bytes(answer).split(b"\n", 1)[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise DialError(f"the proxy {proxy.host}:{proxy.port} does not speak HTTP/1")
    status = int(words[1])
    if not 200 <= status < 300:
        why = "it wants a user name and a password" if status == 407 else "it refused the tunnel"
        raise DialError(f"the proxy {proxy.host}:{proxy.port} answered {status}: {why}")
