"""A peer of the daemon's end that sends whatever it is told to, as fast as the socket takes it."""

import base64
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from struct import Struct
from typing import Final, Self

from benchmarks.processes import BenchError
from tunnel.protocol.frames import DATA, FIN, HEADER, HEADER_SIZE, RST, SYN, WINDOW_UPDATE, encode_header
from tunnel.websocket.codec import WebSocketCodec

MESSAGE: Final = 64 * 1024  # bytes of a message, as the contract has it
_LENGTH16, _LENGTH64 = Struct("!BBH"), Struct("!BBQ")
_NO_MASK: Final = bytes(4)  # a key of zeros is legal, changes nothing, and is worked off as any other
_SECONDS: Final = 60.0


def message(payload: bytes) -> bytes:
    """One binary WebSocket message of a client. Pure."""
    size = len(payload)
    if size < 126:
        head = bytes((0x82, 0x80 | size))
    elif size < 65536:
        head = _LENGTH16.pack(0x82, 0x80 | 126, size)
    else:
        head = _LENGTH64.pack(0x82, 0x80 | 127, size)
    return head + _NO_MASK + payload


def messages(data: bytes, size: int = MESSAGE) -> bytes:
    """`data` in messages of `size` bytes each. Pure."""
    return b"".join(message(data[at : at + size]) for at in range(0, len(data), size))


def _opened(stream_id: int) -> bytes:
    return encode_header(WINDOW_UPDATE, SYN, stream_id, 0)


def _over(stream_id: int) -> bytes:
    return encode_header(WINDOW_UPDATE, FIN, stream_id, 0)


def ids(count: int) -> range:
    """Stream ids of a yamux server, which an agent is. Pure."""
    return range(2, 2 + 2 * count, 2)


def rapid_resets(count: int) -> bytes:
    """So many streams, each opened and reset at once: two frames each. Pure."""
    return b"".join(_opened(one) + encode_header(WINDOW_UPDATE, RST, one, 0) for one in ids(count))


def short_lives(count: int, payload: bytes) -> bytes:
    """So many streams, each opened, used once and ended: three frames each. Pure."""
    spoken = [encode_header(DATA, 0, one, len(payload)) + payload for one in ids(count)]
    return b"".join(_opened(one) + said + _over(one) for one, said in zip(ids(count), spoken, strict=True))


def chopped(streams: Iterable[int], total: int, piece: int) -> bytes:
    """`total` bytes on each of `streams`, in data frames of `piece` bytes, the last one shorter. Pure."""
    data = b""
    for one in streams:
        whole, rest = divmod(total, piece)
        data += _opened(one) + (encode_header(DATA, 0, one, piece) + bytes(piece)) * whole
        data += encode_header(DATA, 0, one, rest) + bytes(rest) if rest else b""
    return data


def ends(streams: Iterable[int]) -> bytes:
    """The end of each. Pure."""
    return b"".join(map(_over, streams))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BenchError(f"the rogue's connection: {error}") from error


class Rogue:
    """One tunnel to the daemon's end. What the network does unexpectedly is raised as BenchError."""

    def __init__(self, port: int) -> None:
        self._wire = WebSocketCodec(client=True)
        self._heard = b""
        with _told():
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        try:
            with _told():
                self._shake_hands()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _shake_hands(self) -> None:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self._socket.sendall(
            f"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := self._socket.recv(4096)):
                raise ConnectionResetError("no handshake")
            head += more
        self._heard = head.partition(b"\r\n\r\n")[2]

    def send(self, data: bytes) -> bool:
        """Whether all of it could be sent before the other end was gone."""
        with _told():
            try:
                self._socket.sendall(data)
            except ConnectionError:
                return False
        return True

    def until_gone(self) -> None:
        """Return when the other end has closed."""
        with _told(), suppress(ConnectionError):
            while self._socket.recv(65536):
                pass

    def until_ended(self, count: int) -> int:
        """Return when the other end has ended `count` streams, or is gone; how many it has."""
        ended, partial = 0, b""
        data = self._heard or self._receive()
        while data:
            partial += b"".join(bytes(payload) for payload in self._wire.receive(data))
            whole = len(partial) // HEADER_SIZE * HEADER_SIZE
            for kind, flags, _, _ in HEADER.iter_unpack(partial[:whole]):
                ended += bool(kind == WINDOW_UPDATE and flags & FIN)
            partial = partial[whole:]
            if ended >= count:
                break
            data = self._receive()
        return ended

    def _receive(self) -> bytes:
        with _told():
            return self._socket.recv(65536)
