"""Which threads of the API's worker may wait for a body: some, and not for one caller alone. It knows no bodies."""

from __future__ import annotations

import threading
from typing import Final

from tunnel.contract import Shares, client_network

PATIENCE_SECONDS: Final = 1.0


class Slots:
    """`limit` threads at most, and as many more that wait for their turn; who else comes is refused at once.

    Args:
        shared: among addresses, as `Shares` says. Else whoever comes first has them: others have shared them before.
    """

    def __init__(self, limit: int, *, shared: bool) -> None:
        self._shares: Shares[None] = Shares(limit, long=shared)
        self._given_back = threading.Condition()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<Slots {self._shares!r} waiting={self._waiting}>"

    def enter(self, address: str) -> bool:
        """Take a slot, to be given back by `leave`. False: none came free in PATIENCE_SECONDS, or too many wait."""
        network = client_network(address)
        with self._given_back:
            if self._shares.take(network):
                return True
            if self._waiting >= self._shares.limit:
                return False
            self._waiting += 1
            try:
                return self._given_back.wait_for(lambda: self._shares.take(network), PATIENCE_SECONDS)
            finally:
                self._waiting -= 1

    def leave(self, address: str) -> None:
        """Give the slot back."""
        with self._given_back:
            self._shares.give_back(client_network(address))
            self._given_back.notify_all()
