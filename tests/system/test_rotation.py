"""A new internal secret, one process after another, while people work (docs/operations.md, "Secrets")."""

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread

import pytest

from cloud.embedded.program import Program
from cloud.supervisor import plan as plans
from cloud.supervisor.probes import http_status
from tests.system.stack import Answer, Stack, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

OLD, NEW = "the-old-internal-secret-0123456789abcdef", "the-new-internal-secret-0123456789abcdef"


@dataclass
class Caller:
    """Asks one path again and again of whichever API answers, as a load balancer and a good client do together.

    An API that takes no connection is passed over; 503 with `Retry-After` is asked again. Whatever else is not 200 is
    a failure that a user would see.
    """

    stack: Stack
    path: str
    ports: tuple[int, ...]
    good: int = 0
    failed: list[str] = field(default_factory=list)

    def run(self, done: Event) -> None:
        while not done.wait(0.1):
            answers = [answer for answer in map(self._ask, self.ports) if answer is not None]
            for answer in answers:
                if answer.status == 200:
                    self.good += 1
                elif answer.status != 503 or "Retry-After" not in answer.headers:
                    self.failed.append(f"{answer.status} {answer.code}")
            if not answers:
                self.failed.append("no API answered")

    def _ask(self, port: int) -> Answer | None:
        try:
            return self.stack.call("GET", self.path, port=port, seconds=20)
        except (OSError, http.client.HTTPException):
            return None  # it is being restarted


@contextmanager
def callers(*all_of: Caller) -> Iterator[None]:
    done = Event()
    threads = [Thread(target=each.run, args=(done,)) for each in all_of]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


def with_secret(program: Program, secrets: str, **settings: str) -> Program:
    return replace(program, env={**program.env, "VISIONA_INTERNAL_SECRET": secrets, **settings})


@pytest.mark.nightly
def test_the_internal_secret_is_changed_without_a_stop(tmp_path: Path, free_port: Callable[[], int]) -> None:
    ports = free_port(), free_port(), free_port()
    with run_stack(
        tmp_path / "var", ports, {"VISIONA_INTERNAL_SECRET": OLD, "VISIONA_TUNNEL_DRAIN_SECONDS": "2"}
    ) as stack:
        stack.start_all()
        second = free_port()
        lists = Caller(stack, "/api/devices", (stack.port, second))
        boxes = Caller(stack, "/api/devices/scan", (stack.port, second))

        def served() -> None:
            lists_then, boxes_then = lists.good, boxes.good
            eventually(lambda: lists.good > lists_then + 2 and boxes.good > boxes_then + 2, 60, "all is served")

        def as_second(program: Program) -> Program:
            ready = lambda _pid: http_status(second, "/healthz") == 200  # noqa: E731 - as short as it reads
            return replace(program, name="api2", ready=ready, log=program.log.with_name("api2.log"))

        with callers(lists, boxes):
            served()
            stack.stop("tunnel", 40)  # 1. every process accepts both: the daemon first, which the APIs will sign for
            stack.start(with_secret(plans.tunnel(stack.plan), f"{OLD},{NEW}"))
            served()
            api = with_secret(plans.api(stack.plan), f"{NEW},{OLD}")  # 2. those that come now sign with the new one
            stack.start(as_second(replace(api, env={**api.env, "VISIONA_API_PORT": str(second)})))
            served()
            stack.stop("api", 40)
            stack.start(api)
            served()
            stack.stop("tunnel", 40)  # 3. and nobody needs the old one any more
            stack.start(with_secret(plans.tunnel(stack.plan), NEW))
            served()
        assert (lists.failed, boxes.failed) == ([], [])

        def internal(secret: str) -> int:
            return stack.call("GET", "/internal/sessions", token=secret, port=stack.internal_port).status

        assert (internal(NEW), internal(OLD)) == (200, 401)
