"""The gate, the watchdog, and what ends a running exchange."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.exceptions
from django.db import OperationalError

from apps.accounts import sessions
from apps.accounts.models import User
from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.proxy import engine, running, selectors
from apps.proxy.running import Gate, Running, Watchdog
from apps.tunnels import registry
from apps.tunnels.forwarder_pool import StreamPool


def of(gate: Gate, **fields: Any) -> Running:
    return Running(gate, **{"device_id": "d", "epoch": 1, "user_id": "u", "login": ""} | fields)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The gate's time, at the test's will."""
    now = [1000.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    return now


def test_an_exchange_turns_long_after_five_seconds(clock: list[float]) -> None:
    gate = Gate(threads=64, long_limit=1)
    first, second = of(gate), of(gate)
    gate.enter(first)
    gate.enter(second)
    clock[0] += 5
    assert (first.ended, first.long) == ("", False)
    clock[0] += 0.1
    assert (first.ended, first.long) == ("", True)
    assert (second.ended, second.long) == ("OVERLOADED", False)
    assert repr(gate) == "<Gate 2/60 long=1/1>"


def test_no_exchange_begins_while_all_long_places_are_taken(clock: list[float]) -> None:
    gate = Gate(threads=64, long_limit=1)
    long = of(gate)
    gate.enter(long)
    assert gate.claim_long(long)
    with pytest.raises(DomainError) as caught:
        gate.enter(of(gate))
    assert (caught.value.code, caught.value.retry_after) == ("OVERLOADED", 5)
    gate.leave(long)
    gate.leave(long)
    gate.enter(of(gate))
    assert repr(gate) == "<Gate 1/60 long=0/1>"


def test_some_threads_are_never_given_out_and_none_waits_while_nothing_moves(clock: list[float]) -> None:
    gate = Gate(threads=4, long_limit=48)
    held = [of(gate, user_id=str(n)) for n in range(3)]
    for each in held:
        gate.enter(each)
    clock[0] += 0.6
    with pytest.raises(DomainError):
        gate.enter(of(gate))
    gate.leave(held[0])
    gate.enter(of(gate))


def test_one_user_takes_neither_all_threads_nor_all_long_places(clock: list[float]) -> None:
    gate = Gate(threads=64, long_limit=16)
    for _ in range(12):
        gate.enter(greedy := of(gate))
        assert gate.claim_long(greedy)
    with pytest.raises(DomainError):
        gate.enter(of(gate))
    for n in range(4):
        gate.enter(another := of(gate, user_id=f"another {n}"))
        assert gate.claim_long(another)
    slow = Gate(threads=64, long_limit=48)
    for _ in range(45):
        slow.enter(of(slow))
    clock[0] += 0.6
    with pytest.raises(DomainError):
        slow.enter(of(slow))
    slow.enter(of(slow, user_id="another"))


def test_a_short_wait_for_room_is_no_refusal() -> None:
    gate = Gate(threads=2, long_limit=48)
    first = of(gate)
    gate.enter(first)
    entered = threading.Event()

    def enter() -> None:
        gate.enter(of(gate))
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    gate.leave(first)
    assert entered.wait(5)
    thread.join(5)


def test_a_block_that_raises_gives_its_room_back() -> None:
    gate = Gate(threads=4, long_limit=4)
    each = of(gate)
    with pytest.raises(KeyError), gate.held(each):
        raise KeyError
    assert gate.running() == []


def test_the_first_verdict_stays() -> None:
    each = of(Gate(threads=4, long_limit=4))
    each.end("UNAUTHENTICATED")
    each.end("NOT_FOUND")
    assert each.ended == "UNAUTHENTICATED"


def test_the_watchdog_looks_while_something_runs_and_rests_otherwise() -> None:
    gate = Gate(threads=4, long_limit=4)
    looked, tidied = threading.Semaphore(0), threading.Semaphore(0)
    left = [1, 0, 0, 0, 0, 0]

    def tidy(now: float) -> int:
        tidied.release()
        return left.pop(0)

    dog = Watchdog(gate.running, lambda seen: looked.release(), tidy, seconds=0.01)
    each = of(gate)
    gate.enter(each)
    dog.wake()
    assert looked.acquire(timeout=5)
    assert looked.acquire(timeout=5)
    gate.leave(each)
    dog.stop()
    assert tidied.acquire(timeout=5)


def test_the_watchdog_outlives_what_its_look_raises(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(threads=4, long_limit=4)
    looked, tidied = threading.Semaphore(0), threading.Semaphore(0)

    def check(seen: list[Running]) -> None:
        looked.release()
        raise ValueError("no hash")

    def tidy(now: float) -> int:
        tidied.release()
        raise RuntimeError("no pool")

    dog = Watchdog(gate.running, check, tidy, seconds=0.01)
    gate.enter(of(gate))
    dog.wake()
    for _ in range(3):
        assert looked.acquire(timeout=30)
        assert tidied.acquire(timeout=30), "what cannot be checked is tidied all the same"
    dog.stop()
    assert "watchdog_failed" in caplog.text
    assert "no hash" in caplog.text, "with the trace of both"


# --- the check itself -------------------------------------------------------------------------------------------------
@pytest.fixture
def device(alice: User) -> Device:
    return Device.objects.create(owner=alice, name="box", epoch=3)


def login(user: User) -> str:
    _, session = sessions.create(user_id=user.pk, address="", agent="", now=datetime.now(UTC))
    return session.token_hash


def test_who_still_may_goes_on(device: Device, alice: User, django_assert_num_queries: Any) -> None:
    gate = Gate(threads=64, long_limit=4)
    mine = [of(gate, device_id=str(device.pk), epoch=3, login=login(alice)) for _ in range(5)]
    static = of(gate, device_id=str(device.pk), epoch=3)
    with django_assert_num_queries(1):
        engine.check([*mine, static])
    assert {each.ended for each in [*mine, static]} == {""}


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("logged out", "UNAUTHENTICATED"),
        ("unpaired", "NOT_FOUND"),
        ("disabled", "NOT_FOUND"),
        ("unknown", "NOT_FOUND"),
        ("admitted anew", "TUNNEL_DISCONNECTED"),
    ],
)
def test_who_may_no_longer_is_ended(device: Device, alice: User, what: str, code: str) -> None:
    each = of(Gate(threads=64, long_limit=4), device_id=str(device.pk), epoch=3, login=login(alice))
    if what == "logged out":
        sessions.end_all(alice.pk)
    elif what == "unpaired":
        Device.objects.update(deleted_at=datetime.now(UTC))
    elif what == "disabled":
        User.objects.update(is_active=False)
    elif what == "unknown":
        each.target = (str(uuid.uuid4()), 3)
    else:
        Device.objects.update(epoch=4)
    engine.check([each])
    assert each.ended == code


def test_who_waits_for_a_box_is_not_ended_by_its_coming_back(device: Device) -> None:
    """An admission raises the epoch first and tells the registry a moment later."""
    each = of(Gate(threads=64, long_limit=4), device_id=str(device.pk), epoch=3)
    beat("old", draining=True)
    registry.put("old", [registry.Session(str(device.pk), "gone", 3, "u", "2026-01-01T00:00:00Z")])
    registry.remove([(str(device.pk), "gone")], drained=True)
    found = engine._find_route(each, "gone")
    assert found is not None
    assert (found.session, found.moving) == ("", True)
    Device.objects.update(epoch=4)
    engine.check([each])
    assert each.ended == ""
    beat("new", draining=False)
    registry.put("new", [registry.Session(str(device.pk), "back", 4, "u", "2026-01-01T00:00:00Z")])
    assert (found := engine._find_route(each, "gone")) is not None
    assert found.session == "back"
    assert each.target == (str(device.pk), 4), "watched as one of that admission from here on"


@pytest.mark.parametrize("error", [OperationalError("gone"), redis.exceptions.ConnectionError("gone")])
def test_while_nobody_can_be_asked_all_go_on(device: Device, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object) -> object:
        raise error

    monkeypatch.setattr(selectors, "live_logins", fail)
    monkeypatch.setattr(selectors, "device_epochs", fail)
    each = of(Gate(threads=64, long_limit=4), device_id=str(device.pk), login="x")
    engine.check([each])
    assert each.ended == ""


# --- idle streams -----------------------------------------------------------------------------------------------------
class Idle:
    """A stream at rest."""

    def __init__(self, node_url: str) -> None:
        self.node_url = node_url
        self.alive = True
        self.closed = False

    def close(self) -> None:
        self.closed = True


def beat(node: str, *, draining: bool) -> None:
    registry.heartbeat(
        node=node,
        url=f"http://{node}",
        version="1",
        started_at=datetime.now(UTC),
        sessions_count=0,
        streams_count=0,
        draining=draining,
    )


def test_idle_streams_of_a_daemon_that_drains_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: StreamPool[Idle] = StreamPool()
    monkeypatch.setattr(engine, "pool", pool)
    leaving, staying = Idle("http://leaving"), Idle("http://staying")
    for stream in (leaving, staying):
        pool.give(stream.node_url, stream, announced=True, reusable=True, now=0)
        beat(stream.node_url.removeprefix("http://"), draining=False)
    assert engine.tidy(1) == 2
    beat("leaving", draining=True)
    assert engine.tidy(1) == 1
    assert (leaving.closed, staying.closed) == (True, False)


def test_idle_streams_are_kept_while_redis_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> frozenset[str]:
        raise redis.exceptions.ConnectionError("gone")

    pool: StreamPool[Idle] = StreamPool(idle_seconds=5)
    monkeypatch.setattr(engine, "pool", pool)
    monkeypatch.setattr(selectors, "draining_nodes", fail)
    pool.give("s", Idle("http://node"), announced=True, reusable=True, now=0)
    assert engine.tidy(1) == 1
    assert engine.tidy(6) == 0
