"""The Redis client when Redis is frozen, stopped, and back."""

import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.conf import settings as configured

from apps.accounts import sessions
from apps.common import redis
from tests.apps.common.relay import Relay


@pytest.fixture
def relay(settings) -> Iterator[Relay]:
    """Redis through a relay, for the whole process."""
    parts = urlsplit(configured.VISIONA["REDIS_URL"])
    assert parts.hostname is not None
    relay = Relay(parts.hostname, parts.port or 6379)
    credentials = parts.netloc.rpartition("@")[0]
    netloc = f"{credentials}@127.0.0.1:{relay.port}" if credentials else f"127.0.0.1:{relay.port}"
    settings.VISIONA = {**settings.VISIONA, "REDIS_URL": urlunsplit(parts._replace(netloc=netloc))}
    _forget()
    yield relay
    relay.thaw()
    redis.client().connection_pool.disconnect()
    relay.stop()
    _forget()


def _forget() -> None:
    redis.client.cache_clear()
    sessions._script.cache_clear()


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
    assert time.monotonic() - started < 2.5
    assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    started = time.monotonic()
    health = alice_api("GET", "/healthz")
    assert time.monotonic() - started < 0.9
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
