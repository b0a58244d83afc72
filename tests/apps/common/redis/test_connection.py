"""The Redis client when Redis is frozen, stopped, and back."""

import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis as redis_package
from django.conf import settings as configured
from django_redis import get_redis_connection
from django_redis.cache import RedisCache

from apps.common import redis
from apps.common.redis.connection import WatchedPool
from tests.apps.common.relay import Relay


@pytest.fixture
def relay(settings) -> Iterator[Relay]:
    """Redis through a relay, for the whole process."""
    parts = urlsplit(configured.VISIONA["REDIS_URL"])
    assert parts.hostname is not None
    relay = Relay(parts.hostname, parts.port or 6379)
    credentials = parts.netloc.rpartition("@")[0]
    netloc = f"{credentials}@127.0.0.1:{relay.port}" if credentials else f"127.0.0.1:{relay.port}"
    settings.CACHES = redis.cache_settings(
        urlunsplit(parts._replace(netloc=netloc)), configured.VISIONA["API_THREADS"], timeout=1.0
    )
    _forget()
    yield relay
    relay.thaw()
    redis.client().connection_pool.disconnect()
    relay.stop()
    _forget()


def _forget() -> None:
    redis.client.cache_clear()


def _wait_for_200(api) -> None:
    deadline = time.monotonic() + 10
    while (answer := api("GET", "/api/auth/me")).status != 200:
        assert answer.code == "CACHE_UNAVAILABLE"
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


@pytest.mark.parametrize("how", ["frozen", "stopped"])
def test_calls_answer_503_then_fail_fast_then_serve_again(relay, alice_api, how):
    assert alice_api("GET", "/api/auth/me").status == 200
    relay.freeze() if how == "frozen" else relay.stop()
    started = time.monotonic()
    answer = alice_api("GET", "/api/auth/me")
    assert time.monotonic() - started < 10
    assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    times = []
    for _ in range(5):  # on a busy machine the second of failing fast may be over before the next call is made
        started = time.monotonic()
        health = alice_api("GET", "/healthz")
        times.append(time.monotonic() - started)
    assert min(times) < 0.9
    assert (health.status, health.code) == (503, "CACHE_UNAVAILABLE")
    assert health.error["details"] == {"checks": {"postgresql": "ok", "redis": "down"}}
    relay.thaw() if how == "frozen" else relay.start()
    _wait_for_200(alice_api)
    assert alice_api("GET", "/healthz").status == 200


def test_a_restart_in_between_is_not_noticed(relay, alice_api):
    assert alice_api("GET", "/api/auth/me").status == 200
    relay.stop()
    relay.start()
    assert alice_api("GET", "/api/auth/me").status == 200


def test_the_client_is_that_of_django_redis():
    assert redis.client().connection_pool is get_redis_connection("default").connection_pool
    assert isinstance(redis.client().connection_pool, WatchedPool)
    kwargs = redis.client().connection_pool.connection_kwargs
    assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (30.0, 30.0)  # tests are patient
    assert kwargs["retry"].get_retries() == 0


def test_one_that_cannot_even_ask_has_failed():
    """Else the one call that tries for all would leave the others refused until it is given up."""
    pool = redis.client().connection_pool
    asking = pool.get_connection()
    try:
        asking._sock.shutdown(socket.SHUT_WR)
        with pytest.raises(redis_package.ConnectionError):
            asking.send_command("PING")
        assert pool.breaker.ask() == "refuse"
    finally:
        pool.breaker.close()
        pool.release(asking)
    assert redis.client().ping() is True


def test_a_password_may_hold_a_comma():
    made = redis.cache_settings("redis://:one,two@cache.example/0", 8, timeout=1.0)["default"]
    pool = RedisCache(made.pop("LOCATION"), made).client.get_client().connection_pool
    assert pool.connection_kwargs["password"] == "one,two"
