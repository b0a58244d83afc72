"""A clock that jumps: hosts disagree by an hour, or one's clock is set while it runs."""

import datetime as dt
import time
import uuid

import pytest
from django.utils import timezone

from apps.accounts import sessions
from apps.common import redis
from apps.common.breaker import OPEN_SECONDS, Breaker
from apps.common.errors import DomainError
from apps.common.ids import uuid7
from apps.common.limits import throttle
from apps.devices import presence
from apps.devices.models import Device
from apps.tunnels import registry
from tests.apps.internal.kit import NODE, Daemon, issue, named

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def login(alice):
    now = timezone.now()
    token, session = sessions.create(user_id=alice.pk, address="192.0.2.1", agent="tests", now=now)
    return token, session, now


@pytest.mark.parametrize("off", [-HOUR, HOUR])
def test_a_login_outlives_a_host_whose_clock_is_off(login, off):
    token, session, now = login
    seen = sessions.use(token, now=now + off)
    assert seen is not None
    assert seen.expires_at == session.expires_at
    assert sessions.use(token, now=now) is not None


def test_a_clock_that_was_behind_prolongs_no_login(login):
    token, session, now = login
    for minute in range(10):
        assert sessions.use(token, now=now - HOUR + dt.timedelta(minutes=minute))
    assert sessions.use(token, now=session.expires_at) is None


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_throttles_go_by_redis_own_clock(monkeypatch, off):
    each = throttle.Window("visiona:throttle:test:clock", 2)
    throttle.take(each)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + off)
    throttle.take(each)
    with pytest.raises(DomainError) as refused:
        throttle.take(each)
    assert 0 < (refused.value.retry_after or 0) <= throttle.WINDOW_SECONDS
    assert 0 < redis.client().pttl(each.key) <= throttle.WINDOW_SECONDS * 1000


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_a_breaker_goes_by_a_clock_that_cannot_be_set(monkeypatch, off):
    now = 100.0
    breaker = Breaker(lambda: now)
    breaker.trip()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + off)
    assert breaker.ask() == "refuse"
    now += OPEN_SECONDS
    assert breaker.ask() == "probe"


def test_ids_stay_unique_when_the_clock_stands_still_or_goes_back(monkeypatch):
    stamps = iter([2_000_000_000_000_000_000, 2_000_000_000_000_000_000, 1_999_999_999_000_000_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(stamps))
    assert len({uuid7() for _ in range(3)}) == 3


def test_ids_are_uuids_of_version_7_that_sort_by_their_time(monkeypatch):
    stamps = iter(range(1_800_000_000_000_000_000, 1_800_000_000_010_000_000, 1_000_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(stamps))
    made = [uuid7() for _ in range(10)]
    assert {(each.version, each.variant) for each in made} == {(7, uuid.RFC_4122)}
    assert made == sorted(made)
    assert [each.int >> 80 for each in made] == list(range(1_800_000_000_000, 1_800_000_000_010))


# --- who is connected -------------------------------------------------------------------------------------------------
@pytest.fixture
def daemon(db):
    node = Daemon()
    node.beat()
    return node


def set_clock(monkeypatch, off):
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(off.total_seconds()) * 1_000_000_000)


@pytest.mark.parametrize("off", [-HOUR, HOUR])
def test_the_devices_of_a_killed_daemon_are_offline_though_the_clock_was_set(daemon, alice, monkeypatch, off):
    monkeypatch.setattr(registry, "SETTLE_MS", 0)  # the registry has stood for long
    daemon.ask(issue(alice))
    presence.follow_registry(now=timezone.now())
    redis.client().delete(f"{registry.PREFIX}node:{NODE}")  # as when its 30 s are over
    set_clock(monkeypatch, off)
    presence.follow_registry(now=timezone.now())
    assert Device.objects.get().link_status == "offline"


@pytest.mark.parametrize("off", [-HOUR, HOUR])
def test_a_close_is_told_by_a_host_whose_clock_is_off(daemon, alice, monkeypatch, off):
    ask = named(issue(alice))
    device = daemon.ask_all(ask)[0]["device_id"]
    held = registry.Held(device, NODE, ask["session"], daemon.url)
    registry.request_close([held], code=1012, reason="kicked")
    set_clock(monkeypatch, off)
    assert [order["session"] for order in daemon.beat(count=1)["close"]] == [ask["session"]]


@pytest.mark.parametrize("off", [-HOUR, HOUR])
def test_an_admission_under_way_stays_though_the_host_that_admitted_has_another_time(daemon, alice, monkeypatch, off):
    with monkeypatch.context() as there:
        set_clock(there, off)
        admitted = daemon.ask(issue(alice))
    daemon.beat(sessions=[])  # its agent is still shaking hands
    assert registry.lookup([admitted["device_id"]]) != {}
