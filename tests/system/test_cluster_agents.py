"""A cluster of three real agents under load: shares by weight, and one of them killed without a failed request."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.apps.proxy.kit import Box
from tests.conftest import Started
from tests.system.before import agent_before
from tests.system.many import online
from tests.system.stack import Stack, eventually

pytestmark = pytest.mark.system

WEIGHTS = {"one": 1, "two": 2, "three": 3}
CALLERS = 4


class Load:
    """Callers that ask a cluster again and again; who answered, and what went wrong."""

    def __init__(self, stack: Stack, path: str) -> None:
        self._stack = stack
        self._path = path
        self._lock = threading.Lock()
        self._done = threading.Event()
        self.served: Counter[str] = Counter()
        self.problems: list[str] = []

    def _ask(self) -> None:
        while not self._done.is_set():
            try:
                answer = self._stack.call("GET", self._path, seconds=60)
                told = answer.headers.get("X-VisionA-Device-Id", "")
                problem = "" if answer.status == 200 and told else f"{answer.status} {answer.body[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                told, problem = "", repr(error)
            with self._lock:
                if problem:
                    self.problems.append(problem)
                else:
                    self.served[told] += 1

    def count(self) -> int:
        with self._lock:
            return sum(self.served.values()) + len(self.problems)

    def restart(self) -> None:
        """Count anew."""
        with self._lock:
            self.served.clear()

    def wait_for(self, more: int) -> None:
        """Until so many more requests have ended."""
        until = self.count() + more
        eventually(lambda: self.count() >= until, 90, f"{more} requests")

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join(90)


@pytest.fixture
def boxes() -> Iterator[dict[str, Box]]:
    """Local servers, each answer in one piece: none is torn by the death of its agent."""
    made = {name: Box() for name in WEIGHTS}
    yield made
    for box in made.values():
        box.close()


@pytest.fixture
def agents(shared_system: Stack, boxes: dict[str, Box], tmp_path: Path) -> Iterator[dict[str, Started]]:
    made = {name: agent_before(shared_system, name, box.port, tmp_path) for name, box in boxes.items()}
    yield made
    for one in made.values():
        one.kill()


def test_three_agents_and_one_killed(shared_system: Stack, agents: dict[str, Started]) -> None:
    eventually(lambda: set(online(shared_system)) >= set(WEIGHTS), 60, "three agents online")
    devices = online(shared_system)
    cluster = shared_system.call("POST", "/api/clusters", {"name": "three"}).data["id"]
    for name, weight in WEIGHTS.items():
        put = shared_system.call("PUT", f"/api/clusters/{cluster}/members/{devices[name]}", {"weight": weight})
        assert put.status == 200, put.body
    load = Load(shared_system, f"/api/clusters/{cluster}/proxy/x")
    with load.running():
        load.wait_for(240)
        with load._lock:
            served = Counter(load.served)
        agents["three"].kill()
        load.wait_for(60)  # what was under way at its death, and what came until it was noticed
        load.restart()
        load.wait_for(120)
    assert load.problems == []
    total = sum(served.values())
    for name, weight in WEIGHTS.items():
        assert served[devices[name]] / total == pytest.approx(weight / 6, abs=0.1), served
    assert set(load.served) == {devices["one"], devices["two"]}
    left = sum(load.served.values())
    assert load.served[devices["two"]] / left == pytest.approx(2 / 3, abs=0.12), load.served
