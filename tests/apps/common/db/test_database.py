"""The database backend: deadlines, fail-fast, recovery, the pool's bounds."""

import asyncio
import datetime as dt
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from django.db import OperationalError, ProgrammingError, connections
from procrastinate import exceptions
from procrastinate.contrib.django import app
from procrastinate.psycopg_connector import PsycopgConnector

from apps.common.breaker import OPEN_SECONDS, Breaker
from apps.common.http.error_mapping import domain_error
from cloud.db.base import DatabaseWrapper
from cloud.db.connection import NoAnswer
from cloud.db.pool import FailedFast, PoolExhausted
from tests.apps.common.relay import Relay

pytestmark = pytest.mark.django_db


@pytest.fixture
def relay() -> Iterator[Relay]:
    settings = connections["default"].settings_dict
    relay = Relay(settings["HOST"], int(settings["PORT"]))
    yield relay
    relay.thaw()
    relay.stop()


@pytest.fixture
def make(relay: Relay) -> Iterator["Make"]:
    maker = Make(relay)
    yield maker
    relay.thaw()
    for each in maker.made:
        each.close()
        each.close_pool()


class Make:
    """Makes connections (DatabaseWrapper) that go through the relay; they share one pool of two."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.made: list[DatabaseWrapper] = []

    def __call__(self, deadline: float = 0.3) -> DatabaseWrapper:
        settings = connections["default"].settings_dict
        options = {**settings["OPTIONS"], "deadline": deadline, "pool_max": 2, "pool_min": 1}
        wrapper = DatabaseWrapper(
            {**settings, "HOST": "127.0.0.1", "PORT": self.relay.port, "OPTIONS": options}, "default"
        )
        self.made.append(wrapper)
        return wrapper


def one(wrapper: DatabaseWrapper) -> int:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        value: int = cursor.fetchone()[0]
    return value


def ask_when_allowed(wrapper: DatabaseWrapper) -> int:
    """As a client that tries again until the fast failures of one second are over."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return one(wrapper)
        except OperationalError as error:
            wrapper.close()
            if not isinstance(error.__cause__, FailedFast) or time.monotonic() > deadline:
                raise
            threading.Event().wait(0.05)


def test_a_frozen_server_is_given_up_at_the_deadline_then_fails_fast_then_serves_again(make, relay):
    wrapper, other = make(), make()
    assert one(wrapper) == 1
    relay.freeze()
    started = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        one(wrapper)
    assert isinstance(caught.value.__cause__, NoAnswer)
    assert 0.3 <= time.monotonic() - started < 10
    assert domain_error(caught.value).code == "DATABASE_UNAVAILABLE"
    for _ in range(5):  # on a busy machine the second of failing fast may be over: then it waits, and the next is fast
        with pytest.raises(OperationalError) as fast:
            one(other)
        assert domain_error(fast.value).code == "DATABASE_UNAVAILABLE"
        if isinstance(fast.value.__cause__, FailedFast):
            break
    assert isinstance(fast.value.__cause__, FailedFast)
    relay.thaw()
    wrapper.close()
    assert ask_when_allowed(wrapper) == 1
    assert one(other) == 1


def test_a_frozen_server_takes_no_new_connection_either(make, relay):
    relay.freeze()
    started = time.monotonic()
    with pytest.raises(OperationalError):
        one(make())
    assert time.monotonic() - started < 10


def test_a_stopped_server_fails_at_once_and_serves_again(make, relay):
    wrapper = make()
    assert one(wrapper) == 1
    wrapper.close()
    relay.stop()
    with pytest.raises(OperationalError) as caught:
        one(wrapper)
    assert domain_error(caught.value).code == "DATABASE_UNAVAILABLE"
    relay.start()
    assert ask_when_allowed(wrapper) == 1


def test_idle_connections_that_a_restart_has_cut_are_not_used(make, relay):
    wrapper = make()
    assert one(wrapper) == 1
    wrapper.close()
    relay.stop()
    relay.start()
    assert one(wrapper) == 1


def test_a_transaction_that_got_no_answer_is_not_acknowledged(make, relay):
    wrapper = make()
    wrapper.set_autocommit(False)
    with wrapper.cursor() as cursor:
        cursor.execute("CREATE TABLE never_there (id int)")
    relay.freeze()
    with pytest.raises(OperationalError), wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    with pytest.raises(OperationalError):
        wrapper.commit()
    wrapper.close()
    relay.thaw()
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT to_regclass('never_there')")
        assert cursor.fetchone() == (None,)


def test_a_slow_statement_of_a_live_server_is_cancelled_and_no_outage(make):
    wrapper = make(deadline=1.5)
    with pytest.raises(OperationalError) as caught, wrapper.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(5)")
    assert isinstance(caught.value.__cause__, psycopg.errors.QueryCanceled)
    assert domain_error(caught.value).code == "OVERLOADED"
    assert one(wrapper) == 1  # the same connection goes on


def test_patience_lifts_the_deadline_until_the_connection_closes(make):
    wrapper = make()
    wrapper.make_patient()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.5)")
    wrapper.close()
    with pytest.raises(OperationalError), wrapper.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(5)")


def test_the_pool_is_bounded_and_hands_connections_on(make):
    first, second, third = make(), make(), make()
    assert one(first) == one(second) == 1
    with pytest.raises(OperationalError) as caught:
        one(third)
    assert isinstance(caught.value.__cause__, PoolExhausted)
    assert domain_error(caught.value).code == "OVERLOADED"
    kept = first.connection
    first.close()
    assert one(third) == 1
    assert third.connection is kept


def test_what_a_connection_was_told_does_not_reach_the_next_user(make):
    wrapper = make()
    with wrapper.cursor() as cursor:
        cursor.execute("BEGIN")
    wrapper.close()
    assert one(wrapper) == 1
    assert wrapper.connection is not None
    assert wrapper.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_wrong_statement_is_no_outage(make):
    with pytest.raises(ProgrammingError), make().cursor() as cursor:
        cursor.execute("SELECT no_such_column")
    assert one(make()) == 1


class TestBreaker:
    def setup_method(self) -> None:
        self.now = 100.0
        self.breaker = Breaker(clock=lambda: self.now)

    def test_passes_until_it_trips_then_refuses_for_a_second(self):
        assert self.breaker.ask() == "pass"
        self.breaker.trip()
        assert repr(self.breaker) == "<Breaker open>"
        self.now += OPEN_SECONDS - 0.01
        assert self.breaker.ask() == "refuse"

    def test_then_one_probes_and_its_answer_counts(self):
        self.breaker.trip()
        self.now += OPEN_SECONDS
        assert [self.breaker.ask() for _ in range(3)] == ["probe", "refuse", "refuse"]
        self.breaker.close()
        assert self.breaker.ask() == "pass"

    def test_a_failed_probe_opens_it_again(self):
        self.breaker.trip()
        self.now += OPEN_SECONDS
        assert self.breaker.ask() == "probe"
        self.breaker.trip()
        assert self.breaker.ask() == "refuse"
        self.now += OPEN_SECONDS
        assert self.breaker.ask() == "probe"

    def test_a_lost_probe_makes_way(self):
        self.breaker.trip()
        self.now += OPEN_SECONDS
        assert self.breaker.ask() == "probe"
        self.now += 10
        assert self.breaker.ask() == "probe"


def test_moments_come_in_utc():
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT '2026-01-02 03:04:05.000006+00'::timestamptz, '1999-12-31 23:00:00-02'::timestamptz")
        first, second = cursor.fetchone()
        cursor.execute("SELECT NULL::timestamptz")
        assert cursor.fetchone() == (None,)
    assert first == dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    assert second == dt.datetime(2000, 1, 1, 1, tzinfo=dt.UTC)
    assert first.tzinfo is second.tzinfo is dt.UTC


def test_moments_come_in_utc_by_a_cursor_at_the_server_too():
    with connections["default"].create_cursor("at_server") as cursor:
        cursor.execute("SELECT '2026-01-02 03:04:05.000006+08'::timestamptz")
        assert cursor.fetchone() == (dt.datetime(2026, 1, 1, 19, 4, 5, 6, tzinfo=dt.UTC),)


def test_the_worker_s_own_connections_have_the_server_s_timeouts(monkeypatch):
    """Those of its queue's pool and the one that listens: a lock of somebody's stops a worker for a while only."""
    monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "deadline", 0.5)
    queue = app.connector.get_worker_connector()
    assert isinstance(queue, PsycopgConnector)

    async def ask() -> list[tuple[str, str]]:
        await queue.open_async()
        try:
            shown = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
            async with queue.pool.connection() as pooled, queue._get_standalone_connection() as listening:
                told = [await (await each.execute(shown)).fetchone() for each in (pooled, listening)]
            with pytest.raises(exceptions.ConnectorException) as slow:
                await queue.execute_query_async("SELECT pg_sleep(5)")
            assert slow.value.__cause__.sqlstate == "57014"
            return told
        finally:
            await queue.close_async()

    assert asyncio.run(ask()) == [("400ms", "350ms")] * 2
