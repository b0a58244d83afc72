"""A database that is there and takes no writes, or was away for a moment (data.md, "When a part is down")."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import redis

from cloud.environment import database_address
from cloud.supervisor import plan as plans
from tests.apps.common.relay import Relay
from tests.system.stack import Stack, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.gameday, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[tuple[Stack, Relay]]:
    """The API alone; its PostgreSQL is reached by a relay, which can refuse."""
    var = tmp_path_factory.mktemp("refused") / "var"
    one = {"VISIONA_API_WORKERS": "1"}  # each worker has a breaker of its own
    with run_stack(var, (free_port(), free_port(), free_port()), one) as stack:
        relay = Relay("127.0.0.1", int(stack.plan.settings["DB_PORT"]))
        try:
            environ = {**stack.plan.environ, "VISIONA_DB_HOST": "127.0.0.1", "VISIONA_DB_PORT": str(relay.port)}
            stack.start(plans.api(replace(stack.plan, environ=environ)))
            stack.log_in()
            yield stack, relay
            stack.close()
        finally:
            relay.stop()


@pytest.fixture
def stack(through: tuple[Stack, Relay]) -> Stack:
    return through[0]


def pair(stack: Stack) -> tuple[int, str]:
    """A call that writes."""
    answer = stack.call("POST", "/api/pairing/token", {"name": "a box"})
    return answer.status, answer.code if answer.status != 201 else ""


def healthy(stack: Stack) -> bool:
    return stack.call("GET", "/healthz", token="").status == 200


def test_connections_to_a_demoted_primary_are_left(through: tuple[Stack, Relay]) -> None:
    """The writes that meet it are 503, and those after them go to the new one: nobody restarts anything."""
    stack, _ = through
    several_at_once(stack, 6)
    with psycopg.connect(**database_address(stack.plan.settings), autocommit=True) as database:
        user = stack.plan.settings["DB_USER"]
        database.execute(f'ALTER ROLE "{user}" SET default_transaction_read_only = on')
        try:
            with psycopg.connect(**database_address(stack.plan.settings), autocommit=True) as fresh:
                fresh.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'visiona' AND pid <> pg_backend_pid()"
                )
            eventually(lambda: pair(stack) == (503, "DATABASE_UNAVAILABLE"), 10, "a write is refused")
            assert stack.call("GET", "/api/devices").status == 200, "reads go on"
            answer = stack.call("GET", "/healthz", token="")
            assert (answer.status, answer.code) == (503, "DATABASE_UNAVAILABLE")
            several_at_once(stack, 6)
        finally:
            database.execute("SET default_transaction_read_only = off")
            database.execute(f'ALTER ROLE "{user}" RESET default_transaction_read_only')
    eventually(lambda: pair(stack)[0] == 201, 2, "the first new connection writes")
    assert [pair(stack)[0] for _ in range(8)] == [201] * 8
    eventually(lambda: healthy(stack), 10, "it is healthy again")


def several_at_once(stack: Stack, number: int) -> None:
    """Reads side by side, after which the API has several idle connections."""
    threads = [threading.Thread(target=stack.call, args=("GET", "/api/devices")) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_restart_of_less_than_a_second_is_waited_for(through: tuple[Stack, Relay]) -> None:
    """Who is under way may fail; who comes while nobody listens is served a moment later."""
    stack, relay = through
    seen: Counter[int] = Counter()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            seen[stack.call("GET", "/api/devices").status] += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    relay.stop()
    time.sleep(0.4)
    relay.start()
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) <= {200, 503}
    assert seen[503] <= len(threads), seen
    assert seen[200] > 2 * len(threads), seen


@contextmanager
def refusing(stack: Stack, how: str) -> Iterator[None]:
    """A Redis that takes no writes."""
    with redis.Redis.from_url(stack.plan.settings["REDIS_URL"]) as client:
        if how == "out of memory":
            client.config_set("maxmemory", "1")
        else:
            client.replicaof("127.0.0.1", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", "0")
            client.replicaof("NO", "ONE")


@pytest.mark.parametrize("how", ["out of memory", "a replica"])
def test_a_redis_that_refuses_writes_is_as_one_that_is_down(stack: Stack, how: str) -> None:
    login = {"email": stack.email, "password": stack.password}

    def log_in() -> Any:
        return stack.call("POST", "/api/auth/login", login, token="")

    since = len(stack.log("api"))
    answer = stack.call("GET", "/healthz", token="")
    assert answer.status == 200, answer.body + stack.log("api")[-3000:].encode()
    with refusing(stack, how):
        answer = stack.call("GET", "/healthz", token="")
        assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")
        assert answer.json["error"]["details"]["checks"] == {"postgresql": "ok", "redis": "down"}
        answer = log_in()
        assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")
    eventually(lambda: healthy(stack) and log_in().status == 200, 10, "it serves again")
    told = stack.log("api")[since:]
    assert '"exception"' not in told, told[-3000:]


def test_a_redis_that_does_not_answer_is_one_line(stack: Stack) -> None:
    """Each refusal names it; no trace of the driver's."""
    since = len(stack.log("api"))
    with stack.frozen("valkey"):
        answer = stack.call("GET", "/api/auth/me", seconds=60)
        assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")
    eventually(lambda: healthy(stack), 10, "it serves again")
    told = stack.log("api")[since:]
    assert "part_unavailable" in told
    assert "Traceback" not in told, told[-4000:]


def test_a_redis_that_does_not_answer_is_one_line_of_each_job(stack: Stack) -> None:
    """It names the job and the part that is down, and is no error: the job of every five seconds comes again."""
    environ = {**stack.plan.environ, "VISIONA_REDIS_TIMEOUT_SECONDS": "0.5"}
    since = len(stack.log("worker"))

    def failed() -> list[dict[str, Any]]:
        ended = [line for line in stack.lines("worker", since) if "ended with status: Error" in line["event"]]
        return [line for line in ended if "follow_registry" in line["event"]]

    stack.start(plans.worker(replace(stack.plan, environ=environ)))
    try:
        with stack.frozen("valkey"):
            eventually(failed, 30, "a job failed")
    finally:
        stack.stop("worker", 60)
    for line in failed():
        assert (line["level"], line["code"]) == ("warning", "CACHE_UNAVAILABLE"), line
        assert line["error"] in ("TimeoutError", "ConnectionError")
    told = stack.log("worker")[since:]
    assert "Traceback" not in told, told[-4000:]
