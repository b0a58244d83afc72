"""Shared camera streams: one source at a box, any number of viewers on the public lane (docs/shared-streams.md).

A viewer's exchange reads from a `Subscription` as if it were a stream of its own to the box; behind all of them is one
`Source`. How bodies are cut and who misses what is `tunnel.http.parts` and `.fanout`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.lane.interfaces import ClientExchange, Downstream, ExchangeContext
from tunnel.daemon.lane.route import LaneRequest, takes_endless
from tunnel.daemon.share.exchange import SharedExchange
from tunnel.daemon.share.key import Key, path_key
from tunnel.daemon.share.pull import ShareVerdict, Source
from tunnel.http import Exchange
from tunnel.logs import JsonLog
from tunnel.protocol.limits import SessionConfig

PLAIN_SECONDS: Final = 60.0
"""So long an answer that was no endless one lets others ask for the same at once, each for itself."""
HELD_BYTES: Final = SessionConfig().hard_buffered
"""Bytes of one device's answers that may be kept for viewers: as many as a session may have unread."""
PATHS: Final = 8192
"""Request lines and paths of which is remembered what they answered."""


class SharedStreams:
    """All shared streams of the daemon, by who may see what: the lane asks it first for each GET."""

    def __init__(self, spawn: Callable[..., None], log: JsonLog, *, events: bool) -> None:
        self.spawn = spawn
        self._log = log
        self.events = events
        self.pulls_total = 0
        self.views_total = 0
        self.skipped_total = 0
        self.given_up_total = 0
        self._held: dict[str, dict[Source, int]] = {}
        self._held_bytes: Counter[str] = Counter()
        self._pulls: dict[Key, Source] = {}
        self._plain: OrderedDict[Key, float] = OrderedDict()
        self._endless: OrderedDict[Key, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<SharedStreams {list(self._pulls.values())}>"

    def __len__(self) -> int:
        return len(self._pulls)

    def take_over(
        self,
        lane: ExchangeContext,
        client: Downstream,
        asked: LaneRequest,
        exchange: Exchange,
        grant: Grant,
        request_id: str,
    ) -> ClientExchange | None:
        """The run of a viewer; None for what is surely no endless stream. The lane's `Share`."""
        head = exchange.request.head
        key = grant.device_id, grant.user_id, grant.epoch, head[: head.index(b"\r\n")]
        until = self._plain.get(key)
        if until is not None:
            if trio.current_time() < until:
                return None
            del self._plain[key]
        if not takes_endless(asked.head):
            return None
        return SharedExchange(self, lane, key, client, asked.head, exchange, grant, request_id)

    def may_be_endless(self, key: Key) -> bool:
        """Whether another daemon is to be asked for it as for what may be shared: that costs a stream of its own.

        Not where the same path, with another query, was something plain just now: a snapshot that is polled.
        """
        return key in self._endless or self._plain.get(path_key(key), 0.0) <= trio.current_time()

    def is_plain(self, key: Key) -> bool:
        """Whether it is known to be no endless stream."""
        return self._plain.get(key, 0.0) > trio.current_time()

    def plain_until(self, grant: Grant, line: bytes) -> float:
        """How long a request line of a caller is known to be answered by no endless stream; 0.0: it is not known."""
        return self._plain.get((grant.device_id, grant.user_id, grant.epoch, line), 0.0)

    def find(self, key: Key) -> Source | None:
        """The pull that a new viewer can join."""
        return self._pulls.get(key)

    def begin(self, key: Key) -> Source:
        """A pull that has no stream yet: from now on others wait for it."""
        pull = self._pulls[key] = Source(self, key)
        return pull

    def known(self, key: Key) -> bool:
        """Whether it was an endless stream before."""
        return key in self._endless

    def settled(self, pull: Source, verdict: ShareVerdict) -> None:
        """The head of a pull's answer is known."""
        key = pull.key
        if verdict is ShareVerdict.ENDLESS:
            self.pulls_total += 1
            self._endless[key] = None
            if len(self._endless) > PATHS:
                self._endless.popitem(last=False)
        elif verdict is ShareVerdict.PLAIN:
            for each in (key, path_key(key)):
                self._plain[each] = trio.current_time() + PLAIN_SECONDS
                if len(self._plain) > PATHS:
                    self._plain.popitem(last=False)

    def over(self, pull: Source) -> None:
        """Nobody joins it any more. Idempotent."""
        if self._pulls.get(pull.key) is pull:
            del self._pulls[pull.key]
            self.skipped_total += pull.skipped

    def unshare(self, pull: Source, why: str) -> None:
        """Nobody knows any more where the units of this answer begin: who watches goes on, nobody joins."""
        self.given_up_total += 1
        self._log.info("share_given_up", device_id=pull.key[0], reason=why)
        self._endless.pop(pull.key, None)
        self.settled(pull, ShareVerdict.PLAIN)
        self.over(pull)

    def hold(self, pull: Source, size: int) -> None:
        """So many bytes are kept of it. Over the device's bound the one of which most are kept is cut off."""
        device = pull.key[0]
        held = self._held.setdefault(device, {})
        self._held_bytes[device] += size - held.get(pull, 0)
        held[pull] = size
        while self._held_bytes[device] > HELD_BYTES:
            victim = max(held, key=held.__getitem__)
            victim.break_off("too many bytes kept for slow viewers")

    def release(self, pull: Source) -> None:
        """Nothing is kept of it any more. Idempotent."""
        device = pull.key[0]
        held = self._held.get(device, {})
        self._held_bytes[device] -= held.pop(pull, 0)
        if not held:
            self._held.pop(device, None)
            self._held_bytes.pop(device, None)

    def crashed(self, error: Exception) -> None:
        """A bug of ours in one pull."""
        self._log.error("pull_crashed", error=repr(error))

    def live(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        name = "visiona_shared_"
        yield GaugeMetricFamily(name + "pulls", "Endless streams pulled from boxes", value=len(self._pulls))
        viewers = sum(len(pull.views) for pull in self._pulls.values())
        yield GaugeMetricFamily(name + "viewers", "Viewers of shared streams", value=viewers)
        yield CounterMetricFamily(name + "pulls", "Endless streams pulled from boxes", value=self.pulls_total)
        yield CounterMetricFamily(name + "viewers", "Viewers that joined", value=self.views_total)
        skipped = self.skipped_total + sum(pull.skipped for pull in self._pulls.values())
        yield CounterMetricFamily(
            name + "given_up", "Endless streams in which nobody can step in any more", value=self.given_up_total
        )
        yield CounterMetricFamily(name + "units_skipped", "Frames that slow viewers missed", value=skipped)
