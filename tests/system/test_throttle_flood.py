"""Floods of logins: what happens is what docs/threat-model.md, "Guessing passwords", says.

`FLOOD_SECONDS=10 pytest -s` on a quiet machine prints the figures that stand there.
"""

import http.client
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event, Thread

import pytest

from cloud.supervisor import plan as plans
from tests.system.stack import Stack, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SECONDS = float(os.environ.get("FLOOD_SECONDS", "2"))
A_SECOND = 200
ATTACKERS = 40
LIMIT = 20
OWN_ADDRESS = "203.0.113.77"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    """An API behind a proxy, which tells where people come from; no box."""
    settings = {"VISIONA_TRUSTED_PROXIES": "127.0.0.1", "VISIONA_THROTTLE_LOGIN_ADDRESS": str(LIMIT)}
    from_port = free_port(), free_port(), free_port()
    with run_stack(tmp_path_factory.mktemp("flood") / "var", from_port, settings) as running:
        running.start(plans.api(running.plan))
        running.log_in()
        yield running


@dataclass
class Bystander:
    """Asks a path again and again meanwhile: statuses, and milliseconds."""

    stack: Stack
    path: str
    statuses: Counter[int] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)

    def run(self, done: Event) -> None:
        while not done.wait(0.05):
            began = time.monotonic()
            self.statuses[self.stack.call("GET", self.path, seconds=60).status] += 1
            self.took.append((time.monotonic() - began) * 1000)

    def __str__(self) -> str:
        ordered = sorted(self.took)
        last = ordered[int(len(ordered) * 0.99)]
        return f"{self.path}: {len(ordered)} calls, p50 {statistics.median(ordered):.0f} ms, p99 {last:.0f} ms"


Answered = tuple[int, str, dict[str, str]]


def attempt(link: http.client.HTTPConnection, email: str, password: str, address: str) -> Answered:
    body = json.dumps({"email": email, "password": password})
    headers = {"Content-Type": "application/json", "X-Forwarded-For": address}
    link.request("POST", "/api/auth/login", body=body, headers=headers)
    answer = link.getresponse()
    told = json.loads(answer.read())
    return answer.status, told.get("error", {}).get("code", ""), dict(answer.getheaders())


def flood(stack: Stack, guess: Callable[[int], tuple[str, str]]) -> tuple[Counter[str], list[Bystander]]:
    """A_SECOND logins a second for SECONDS; `guess` gives e-mail and address of number n. Codes, and who stood by."""
    codes: Counter[str] = Counter()
    wrong: list[object] = []
    began = time.monotonic()

    def attack(first: int) -> None:
        link = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
        for number in range(first, int(A_SECOND * SECONDS), ATTACKERS):
            time.sleep(max(0.0, began + number / A_SECOND - time.monotonic()))  # the pace of the flood
            if time.monotonic() - began > SECONDS * 3:
                break
            email, address = guess(number)
            status, code, headers = attempt(link, email, "not the password", address)
            codes[code] += 1
            if (status in (429, 503)) != ("Retry-After" in headers):
                wrong.append((status, code, headers))
        link.close()

    bystanders = [Bystander(stack, "/healthz"), Bystander(stack, "/api/devices")]
    done = Event()
    watching = [Thread(target=each.run, args=(done,)) for each in bystanders]
    attackers = [Thread(target=attack, args=(first,)) for first in range(ATTACKERS)]
    for thread in (*watching, *attackers):
        thread.start()
    for thread in attackers:
        thread.join(120)
    done.set()
    for thread in watching:
        thread.join(60)
    took = time.monotonic() - began
    print(f"\n{sum(codes.values())} logins in {took:.1f} s: {dict(codes)}; " + "; ".join(map(str, bystanders)))
    assert wrong == []
    for each in bystanders:
        assert each.statuses[200] >= 0.8 * each.statuses.total(), each.statuses  # all of them, on a quiet machine
    return codes, bystanders


def test_one_account_from_many_addresses(stack: Stack) -> None:
    """Each is judged or told to come again; nobody waits for it but logins; the owner gets in from another address."""
    codes, _ = flood(stack, lambda number: (stack.email, f"198.51.{number // 200 % 250}.{number % 200}"))
    assert set(codes) <= {"INVALID_CREDENTIALS", "OVERLOADED", "RATE_LIMITED"}
    assert codes["INVALID_CREDENTIALS"]

    def owner() -> bool:
        link = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
        status, *_ = attempt(link, stack.email, stack.password, OWN_ADDRESS)
        link.close()
        return status == 200

    eventually(owner, 30, "the owner logs in")


def test_many_accounts_from_one_address(stack: Stack) -> None:
    """No more than the limit are judged, whichever accounts they name; all else is refused without a hash."""
    codes, _ = flood(stack, lambda number: (f"user{number}@example.com", "198.18.0.1"))
    assert codes["INVALID_CREDENTIALS"] <= LIMIT
    if codes["RATE_LIMITED"]:  # else so few got through that the limit was not reached
        assert codes["INVALID_CREDENTIALS"] == LIMIT
    assert set(codes) <= {"INVALID_CREDENTIALS", "RATE_LIMITED", "OVERLOADED"}


def test_the_metrics_are_of_all_processes_together(stack: Stack) -> None:
    """Whichever worker is asked tells what all of them have answered."""
    secret = stack.plan.settings["INTERNAL_SECRET"][0]

    def counted() -> float:
        told = stack.call("GET", "/internal/metrics", token=secret).body.decode().splitlines()
        name = 'visiona_api_requests_total{method="GET",route="healthz",status="200"}'
        return sum(float(line.rpartition(" ")[2]) for line in told if line.startswith(name))

    def at_rest() -> bool:
        """Whoever asked before, and gave up waiting, has been answered."""
        then = counted()
        time.sleep(1.0)
        return counted() == then

    eventually(at_rest, 30, "nobody else asks")
    before = counted()
    for _ in range(40):  # a new connection each: both workers get some
        assert stack.call("GET", "/healthz", token="").status == 200
    assert {counted() - before for _ in range(6)} == {40.0}
    assert stack.call("GET", "/internal/metrics").status == 401
