"""How many connections the public port holds, and which one gives way to the next.

Clients' connections are bounded by the descriptors that there are, less a reserve for agents and the API. At the limit
the one that idles longest is closed; so is one of an address that has not proved itself (no caller or agent of it was
ever let in) and has its share. It knows neither sockets nor HTTP, and looks through all connections only now and then.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tunnel.contract import client_network

_SHARE: Final = 8
"""An address that has not proved itself has one part of so many of all places."""
_LEAST: Final = 8
_RESERVE: Final = 4
"""One part of so many is kept from clients, for agents and the API; they may take more."""
_BATCH: Final = 256  # of those that idle longest are found at once: looking through all of them is dear
_LOOK_SECONDS: Final = 0.1  # after that all may be looked through in any case
_LOOKS: Final = 64  # at connections, that a newcomer pays for: all are looked through once enough have come
_UNHEARD_SECONDS: Final = 1.0  # a head takes a round trip: until then a newcomer is not idle
_PROVED: Final = 10_000


class HeldConnection(Protocol):
    """A client's connection, once its first request was read."""

    def idle_since(self) -> float | None:
        """Since when it has no exchange and waits for the next; None: it is at work."""

    def close(self) -> None:
        """Close it at once. Idempotent."""


def _nothing() -> None:
    """What was read need not be ended unread."""


class _Held:
    """A place. Before its first request was read it idles; then `connection` tells, once there is one."""

    __slots__ = ("agent", "connection", "party", "read", "since", "unheard")

    def __init__(self, party: str, since: float, unheard: Callable[[], None]) -> None:
        self.party = party
        self.since = since
        self.unheard = unheard
        self.read = False
        self.agent = False
        self.connection: HeldConnection | None = None

    def idle_since(self, now: float) -> float | None:
        if self.connection is not None:
            return self.connection.idle_since()
        return None if self.read or now - self.since < _UNHEARD_SECONDS else self.since

    def give_way(self) -> None:
        if self.connection is not None:
            self.connection.close()
        else:
            self.unheard()


class _Longest:
    """Finds the one that idles longest among those that it is shown."""

    __slots__ = ("_found", "_looked", "_paid")

    def __init__(self) -> None:
        self._found: deque[tuple[float, int, _Held]] = deque()
        self._looked = float("-inf")
        self._paid = 0

    def pick(self, held: Collection[_Held], now: float) -> _Held | None:
        self._paid += _LOOKS
        found = self._known(now)
        if found is None and (self._paid >= len(held) or now - self._looked >= _LOOK_SECONDS):
            self._looked, self._paid = now, 0
            each = enumerate(held)  # in the order in which they came
            idle = ((since, n, one) for n, one in each if (since := one.idle_since(now)) is not None)
            self._found = deque(heapq.nsmallest(_BATCH, idle))
            found = self._known(now)
        return found

    def _known(self, now: float) -> _Held | None:
        while self._found:
            since, _, one = self._found.popleft()
            if one.idle_since(now) == since:
                return one
        return None


class _Party:
    __slots__ = ("held", "longest")

    def __init__(self) -> None:
        self.held: dict[_Held, None] = {}
        self.longest = _Longest()


class ConnectionLimit:
    """The places of one public port, by whatever stands for a connection there.

    Args:
        limit: connections of clients and agents together.
        descriptors: of all connections of the process.
        elsewhere: how many of these are in use for other than the public port.
        trusts: whether an address is a proxy's that speaks for many.
    """

    def __init__(
        self,
        limit: int,
        descriptors: int,
        *,
        elsewhere: Callable[[], int] = lambda: 0,
        trusts: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._limit = limit
        self._descriptors = descriptors
        self._elsewhere = elsewhere
        self._trusts = trusts
        self._places: dict[object, _Held] = {}
        self._clients: dict[_Held, None] = {}
        self._parties: dict[str, _Party] = {}
        self._proved: OrderedDict[str, None] = OrderedDict()
        self._longest = _Longest()
        self._agents = 0
        self.gave_way = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"<ConnectionLimit clients={len(self._clients)} of {self.most_clients} agents={self._agents}>"

    @property
    def most_agents(self) -> int:
        """Agents that there are places for; clients have what is left."""
        return self._descriptors - self._descriptors // _RESERVE

    @property
    def most_clients(self) -> int:
        """Clients' connections that there are places for now."""
        elsewhere = self._elsewhere() + self._agents
        by_descriptors = self._descriptors - max(self._descriptors // _RESERVE, elsewhere)
        by_limit = self._limit - max(self._limit // _RESERVE, self._agents)
        return max(_LEAST, min(by_descriptors, by_limit))

    def take(self, key: object, address: str, unheard: Callable[[], None]) -> bool:
        """A place for a newcomer, for which another may have to give way; False: there is none.

        `unheard` ends it as long as its first request was not read. A few more than there is room for are heard, since
        one may be an agent: `enter` decides about clients.
        """
        now = trio.current_time()
        party = client_network(address)
        most = self.most_clients
        own = self._parties.get(party)
        if own is not None and not self._has_proved(address, party) and len(own.held) >= max(_LEAST, most // _SHARE):
            room = self._push_out(own.longest.pick(own.held, now))
        elif len(self._clients) >= most:
            heard_too = most + self._descriptors // _RESERVE // 2
            room = self._push_out(self._longest.pick(self._clients, now)) or len(self._clients) < heard_too
        else:
            room = True
        if not room:
            self.refused += 1
            return False
        held = self._places[key] = _Held(party, now, unheard)
        self._clients[held] = None
        self._parties.setdefault(party, _Party()).held[held] = None
        return True

    def read(self, key: object) -> None:
        """Its first request was read: it does not idle, whatever it waits for."""
        held = self._places.get(key)
        if held is not None:
            held.read = True
            held.unheard = _nothing

    def enter(self) -> bool:
        """What was read is a client's: whether there is room for it."""
        if len(self._clients) <= self.most_clients:
            return True
        room = self._push_out(self._longest.pick(self._clients, trio.current_time()))
        self.refused += not room
        return room

    def heard(self, key: object, connection: HeldConnection) -> None:
        """From now on `connection` tells whether it idles."""
        held = self._places.get(key)
        if held is not None:
            held.connection = connection

    def admitted(self, key: object) -> None:
        """It is an agent's: it gives way to nobody, and its address has proved itself."""
        held = self._places.get(key)
        if held is not None and held in self._clients:
            self._drop(held)
            held.agent = True
            self._agents += 1
            self._prove(held.party)

    def prove(self, address: str) -> None:
        """A caller from there was let in."""
        self._prove(client_network(address))

    def leave(self, key: object) -> None:
        """It has ended. Idempotent."""
        held = self._places.pop(key, None)
        if held is None:
            return
        self._agents -= held.agent
        if held in self._clients:
            self._drop(held)

    def make_room(self) -> bool:
        """Let one give way though the limit is not reached: the system has no descriptor left."""
        return self._push_out(self._longest.pick(self._clients, trio.current_time()))

    def live(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        name = "visiona_tunnel_clients"
        yield GaugeMetricFamily(name, "Clients' connections on the public port", value=len(self._clients))
        yield GaugeMetricFamily(name + "_max", "The most of them that there is room for now", value=self.most_clients)
        ended = CounterMetricFamily(name + "_ended", "Of them, for want of room", labels=["how"])
        ended.add_metric(["gave_way"], self.gave_way)
        ended.add_metric(["refused"], self.refused)
        yield ended

    # Inside
    def _has_proved(self, address: str, party: str) -> bool:
        return party in self._proved or self._trusts(address)

    def _prove(self, party: str) -> None:
        self._proved[party] = None
        self._proved.move_to_end(party)
        if len(self._proved) > _PROVED:
            self._proved.popitem(last=False)

    def _push_out(self, held: _Held | None) -> bool:
        if held is None:
            return False
        self.gave_way += 1
        self._drop(held)
        held.give_way()
        return True

    def _drop(self, held: _Held) -> None:
        del self._clients[held]
        party = self._parties[held.party]
        del party.held[held]
        if not party.held:
            del self._parties[held.party]
