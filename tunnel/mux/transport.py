"""What a session needs of whatever carries its bytes: the interface and its errors."""

from __future__ import annotations

from typing import Protocol

from tunnel.net.sockets import Socket

Payload = bytes | bytearray | memoryview


class TransportProtocolError(Exception):
    """The peer broke the rules of what carries the bytes; it was told so with `code` and `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Transport(Protocol):
    """A connection seen as a byte pipe: payloads in, messages out.

    `close_code` is what the peer sent: None while open, 1006 if it just vanished.
    """

    @property
    def close_code(self) -> int | None: ...
    @property
    def close_reason(self) -> str: ...

    async def receive_some(self) -> Payload:
        """Payload bytes as they arrive; b"" when the peer ended.

        Raises trio.BrokenResourceError when the connection broke, TransportProtocolError when the peer broke the
        protocol (already answered with a close frame).
        """
        ...

    async def send_all(self, data: Payload) -> None:
        """One binary message, by one task at a time. Raises trio.BrokenResourceError, trio.ClosedResourceError."""
        ...

    def try_send(self, data: Payload) -> bool:
        """As `send_all`, while nobody sends, if it can be done without waiting.

        False: it was not written, or not to its end, and `send_all` of the same message must be the next.
        """
        ...

    def unsent(self) -> int | None:
        """Bytes of what is being written that the peer's system has not taken yet; None: nobody can tell."""
        ...

    @property
    def bytes_in(self) -> int:
        """Bytes of any kind that came so far: also those of a frame that is not whole yet."""
        ...

    def kernel_socket(self) -> Socket | None:
        """The TCP socket below it all, to ask the kernel; None where there is none."""
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with a code, within a second; idempotent."""
        ...
