"""For whom a proxy before us asks, and whether it is believed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from tunnel.daemon.config import Network
from tunnel.daemon.http.messages import Request
from tunnel.http import RequestHead


def forwarded_address(peer: str, told: Iterable[str], trusted: Sequence[Network]) -> str:
    """The peer's address, or the last one that the fields X-Forwarded-For told of and that is no trusted proxy's."""
    forwarded = ",".join(told).split(",")
    address = peer
    for hop in [*(word.strip() for word in forwarded if word.strip()), peer][::-1]:
        try:
            parsed = ipaddress.ip_address(hop)
        except ValueError:
            return address  # whoever wrote that is not to be believed any further
        address = str(parsed)
        if not any(parsed in network for network in trusted):
            return address
    return address


def client_address(peer: str, request: Request, trusted: Sequence[Network]) -> str:
    """The agent's address, as `forwarded_address` tells it."""
    return forwarded_address(peer, [value for name, value in request.fields if name == "x-forwarded-for"], trusted)


class TrustedProxies:
    """Whom we believe when it says for whom it asks."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted

    def trusts(self, address: str) -> bool:
        """Whether an address is a trusted proxy's."""
        if not self._trusted:
            return False
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._trusted)

    def client_of(self, address: str, head: RequestHead) -> str:
        """Whose request it is: the address of whoever is connected, unless that is a trusted proxy's."""
        if not self.trusts(address):
            return address
        told = [value.decode("latin-1") for name, value in head.fields if name.lower() == b"x-forwarded-for"]
        return forwarded_address(address, told, self._trusted)
