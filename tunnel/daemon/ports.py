"""The two ports of a daemon: bound before anything else, so that a port in use is told at once."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from tunnel.daemon.config import TunnelConfig
from tunnel.net.sockets import listen


class PortInUse(OSError):
    """A port that we need is taken; the text is the line for the operator."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The two listening sockets, bound before anything else starts."""

    public: socket.socket
    internal: socket.socket

    @property
    def public_port(self) -> int:
        return int(self.public.getsockname()[1])

    @property
    def internal_port(self) -> int:
        return int(self.internal.getsockname()[1])

    def close(self) -> None:
        """Give both ports back."""
        self.public.close()
        self.internal.close()


def bind(config: TunnelConfig) -> Ports:
    """Listen on both ports. Raises PortInUse with one clear line."""
    public = _listen(config.public_host, config.public_port, "VISIONA_TUNNEL_PORT")
    try:
        internal = _listen(config.internal_host, config.internal_port, "VISIONA_PROXY_INTERNAL_PORT")
    except PortInUse:
        public.close()
        raise
    return Ports(public, internal)


def _listen(host: str, port: int, setting: str) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise PortInUse(f"cannot listen on {host}:{port} ({setting}): {error.strerror or error}") from error
