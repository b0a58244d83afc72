"""A hundred finalizes of one user while S3 stands still, and when it goes on: who needs no bytes never waits.

S3 is moto's server, a process of its own: stopped, its kernel still takes connections, and nobody ever answers.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from cloud.supervisor import plan as plans
from tests.apps.stores import Moto, moto, request
from tests.system.stack import BUSY, Answer, Stack, eventually, run_stack, standing_still

__all__ = ["moto"]
pytestmark = [pytest.mark.system, pytest.mark.gameday, pytest.mark.timeout(600)]

MANY = 100
DATA = b"weights" * 1000
QUICK = 2.0 * BUSY
"""Seconds for what needs no bytes, behind a hundred calls that came at once; on a quiet machine half a second."""
TOLD = 5.0 * BUSY
"""Seconds after which those who wait for S3 are told."""


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int], moto: Moto) -> Iterator[Stack]:
    """Daemon, API and worker on S3. The seeds' bytes stay where they are: nobody asks for them."""
    ports = free_port(), free_port(), free_port()
    with run_stack(tmp_path_factory.mktemp("frozen-s3") / "var", ports) as running:
        running.environ |= {f"VISIONA_{name}": value for name, value in moto.settings("frozen").items()}
        running.plan = plans.make(running.var, running.environ)
        for part in (plans.tunnel, plans.api, plans.worker):
            running.start(part(running.plan))
        running.log_in()
        yield running


@dataclass
class User:
    """One who uploads."""

    stack: Stack
    token: str

    def upload(self, name: str) -> str:
        """The id of a model whose bytes are in S3, and not yet finalized."""
        facts = {"name": name, "version": "1", "filename": "m.nef", "size": len(DATA), "chips": ["KL720"]}
        begun = self.stack.call("POST", "/api/models/init", facts, token=self.token)
        assert begun.status == 201, begun.body
        sending = begun.data["upload"]
        assert request("PUT", sending["url"], DATA, sending["headers"]).status == 200
        return str(begun.data["model"]["id"])

    def finalize(self, model: str) -> tuple[Answer, float]:
        """The answer, and after how many seconds it came."""
        began = time.monotonic()
        answer = self.stack.call("POST", f"/api/models/{model}/finalize", token=self.token, seconds=60)
        return answer, time.monotonic() - began

    def ready(self) -> int:
        """How many models of theirs are."""
        rows = self.stack.call("GET", "/api/models?status=ready&limit=200", token=self.token).data
        return sum(row["size"] == len(DATA) for row in rows)


def slowest_without_bytes(stack: Stack) -> float:
    """A login, a list, what is known of a model, the word on health: seconds of the slowest."""
    seconds = []
    for ask in (
        stack.log_in,
        lambda: stack.call("GET", "/api/devices"),
        lambda: stack.call("GET", "/api/models"),
        lambda: stack.call("GET", "/healthz", token=""),
    ):
        began = time.monotonic()
        answer = ask()
        seconds.append(time.monotonic() - began)
        assert answer is None or answer.status == 200
    return max(seconds)


def test_a_hundred_finalizes(stack: Stack, moto: Moto) -> None:
    alice, bob = User(stack, stack.token), User(stack, stack.register("bob@example.com"))
    with ThreadPoolExecutor(8) as hands:
        many = list(hands.map(alice.upload, [f"m{n}" for n in range(MANY)]))
        few = list(hands.map(bob.upload, [f"m{n}" for n in range(5)]))
    assert moto.process is not None
    with ThreadPoolExecutor(MANY + len(few)) as callers:
        with standing_still(moto.process.pid):
            asked = [callers.submit(alice.finalize, model) for model in many]
            first = callers.submit(bob.finalize, few[0])
            slowest = [slowest_without_bytes(stack) for _ in range(3)]
            assert max(slowest) < QUICK, slowest
            answers = [one.result() for one in asked]
            # Who waits is told after 5 s (of S3), the others at once that it is being checked.
            assert {answer.status for answer, _ in answers} <= {202, 503}, Counter(a.status for a, _ in answers)
            assert max(seconds for _, seconds in answers) < TOLD
            refused, seconds = first.result()
            assert (refused.status, refused.json["error"]["details"]) == (503, {"part": ["storage"]})
            assert seconds < TOLD
            # One call tries for all; beside it the breaker refuses at once.
            told = list(callers.map(bob.finalize, few[1:3]))
            assert {answer.status for answer, _ in told} == {503}
            assert min(seconds for _, seconds in told) < BUSY
            assert alice.ready() == 0
        eventually(lambda: bob.finalize(few[0])[0].status == 200, 15, "one is checked again")

        # All of them again, on a server that answers: what was refused is told once, and asked anew.
        asked = [callers.submit(alice.finalize, model) for model in many * 2]

        def checked() -> tuple[Answer, float] | None:
            answer, seconds = bob.finalize(few[3])
            return None if answer.status == 503 else (answer, seconds)  # told of a probe that failed as it thawed

        done, seconds = eventually(checked, 15, "another's is checked")
        assert (done.status, done.data["status"]) == (200, "ready")
        assert seconds < 2.0 * BUSY, "two hundred calls of another's are no reason to wait"
        assert slowest_without_bytes(stack) < QUICK
        assert {one.result()[0].status for one in asked} <= {200, 202, 503}
        for model in many:  # whose failure was told by the last of these
            alice.finalize(model)
    eventually(lambda: alice.ready() == MANY, 60, "all are ready")
