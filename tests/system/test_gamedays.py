"""Game days that no other file has: mistakes of an operator with everything running (`make gameday` runs all)."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest
import redis
from psycopg import sql

from cloud.environment import database_address
from cloud.supervisor import plan as plans
from tests.system.stack import Stack, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.gameday, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    ports = free_port(), free_port(), free_port()
    with run_stack(tmp_path_factory.mktemp("gamedays") / "var", ports) as running:
        yield running.start_all()


def ready(stack: Stack) -> bool:
    return stack.call("GET", "/readyz", token="", port=stack.internal_port).status == 200


def test_redis_is_emptied(stack: Stack) -> None:
    """Logins are gone, as they are kept there alone; no tunnel is dropped, and who is online is known again at once."""
    device = stack.device_id()
    before = {each["session"] for each in stack.sessions()}
    with redis.Redis.from_url(stack.plan.settings["REDIS_URL"]) as client:
        client.flushall()
    assert stack.call("GET", "/healthz", token="").status == 200
    assert stack.call("GET", "/api/auth/me").status == 401
    stack.log_in()
    assert stack.device_id() == device
    eventually(lambda: stack.call("GET", "/api/devices/scan").status == 200, 20, "the box serves")
    assert {each["session"] for each in stack.sessions()} == before
    eventually(lambda: ready(stack), 20, "ready")


@pytest.mark.nightly
def test_the_api_runs_on_an_empty_database_for_a_while(stack: Stack) -> None:
    """A wrong setting, say: a box that dials meanwhile is told to come again, not that its credential is dead."""
    device = stack.device_id()
    with closing(psycopg.connect(**database_address(stack.plan.settings), autocommit=True)) as db:
        db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier("empty")))
    environ = stack.environ | {"VISIONA_DB_NAME": "empty"}
    wrong = replace(stack, environ=environ, plan=plans.make(stack.var, environ), processes={})
    try:
        for name in ("api", "tunnel"):
            stack.stop(name, 60)
        stack.start(plans.tunnel(stack.plan))
        wrong.start(plans.api(wrong.plan))
        log = len(stack.log("agent"))
        eventually(lambda: "503" in stack.log("agent")[log:], 60, "the box was told to come again")
        assert stack.processes["agent"].poll() is None
        assert '"status":"refused"' not in stack.log("agent")[log:]
    finally:
        wrong.close()
        for name, part in (("tunnel", plans.tunnel), ("api", plans.api)):
            if not stack.runs(name):
                stack.start(part(stack.plan))
    stack.log_in()
    assert stack.device_id() == device
    eventually(lambda: ready(stack), 20, "ready")
