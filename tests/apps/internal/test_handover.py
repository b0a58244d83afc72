"""A device that moves from a daemon that drains to another: nobody cuts what runs, and who asks meanwhile may wait."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from apps.accounts.models import User
from apps.common import redis
from apps.common.errors import DomainError
from apps.devices import selectors as devices
from apps.devices.models import Device
from apps.proxy import selectors
from apps.tunnels import registry
from tests.apps.internal.kit import Daemon, event, fact, issue, named

SECOND = "0198c000-0000-7000-8000-000000000002"


@pytest.fixture
def other(db: None) -> Daemon:
    made = Daemon(SECOND, "http://127.0.0.1:2")
    made.beat()
    return made


def admit(daemon: Daemon, alice: User) -> tuple[dict[str, Any], str]:
    """An agent's answer and its session."""
    ask = named(issue(alice))
    return daemon.ask_all(ask)[0], ask["session"]


def hand_over(other: Daemon, first: dict[str, Any], session: str) -> dict[str, Any]:
    moved: dict[str, Any] = other.ask(first["session_token"], handover=session)
    assert moved["ok"] is True
    return moved


def test_the_new_daemon_is_told_that_the_old_session_was_handed_over(
    daemon: Daemon, other: Daemon, alice: User
) -> None:
    first, session = admit(daemon, alice)
    moved = hand_over(other, first, session)
    assert moved["replaced"] == {"node_url": daemon.url, "session": session, "handover": True}
    assert registry.lookup([first["device_id"]])[first["device_id"]].node == SECOND


def test_one_that_names_another_session_replaces_as_ever(daemon: Daemon, other: Daemon, alice: User) -> None:
    first, session = admit(daemon, alice)
    moved = hand_over(other, first, str(uuid.uuid4()))
    assert moved["replaced"] == {"node_url": daemon.url, "session": session}


def test_what_runs_on_the_old_session_goes_on(daemon: Daemon, other: Daemon, alice: User) -> None:
    first, session = admit(daemon, alice)
    hand_over(other, first, session)
    # the old daemon's full list: its session is older than the device's, and is left to end by itself
    assert daemon.beat(sessions=[fact(first, session)])["close"] == []
    present = registry.lookup([first["device_id"]])[first["device_id"]].session
    assert present != session
    third = daemon.ask(first["session_token"], handover=present)  # and once more
    assert third["ok"] is True


def test_a_device_whose_daemon_drained_can_be_waited_for(daemon: Daemon, alice: User) -> None:
    first, session = admit(daemon, alice)
    assert daemon.tell(event("disconnected", first, session, reason="drain", code=1012)) == 1
    device = Device.objects.get()
    route = selectors.route_of(str(device.pk))
    assert route is not None
    assert (route.session, route.moving, route.epoch) == ("", True, first["epoch"])
    assert devices.target_of(device).entry.moving
    assert devices.choose_device(alice.pk, header=None, query=None).device == device
    assert daemon.ask(first["session_token"])["ok"]
    route = selectors.route_of(str(device.pk))
    assert route is not None
    assert (route.moving, route.session != "") == (False, True)


def test_the_last_words_of_one_that_was_handed_over_change_nothing(daemon: Daemon, other: Daemon, alice: User) -> None:
    """They come when its streams have ended; a box that is lost after that is offline at once, for every caller."""
    first, session = admit(daemon, alice)
    ask = named(first["session_token"], handover=session)
    moved = other.ask_all(ask)[0]
    assert daemon.tell(event("disconnected", first, session, reason="drain", code=1012)) == 0
    route = selectors.route_of(first["device_id"])
    assert route is not None
    assert (route.session, route.moving) == (ask["session"], False)
    assert other.tell(event("disconnected", moved, ask["session"], reason="liveness", code=4408)) == 1
    assert selectors.route_of(first["device_id"]) is None
    with pytest.raises(DomainError) as caught:
        devices.target_of(Device.objects.get())
    assert (caught.value.code, caught.value.retry_after) == ("TUNNEL_DISCONNECTED", 5)


def test_one_that_was_lost_cannot(daemon: Daemon, alice: User) -> None:
    first, session = admit(daemon, alice)
    daemon.tell(event("disconnected", first, session, reason="lost", code=1006))
    assert selectors.route_of(first["device_id"]) is None
    assert registry.lookup([first["device_id"]], moving=True) == {}


def test_the_daemon_of_the_entry_drains(daemon: Daemon, alice: User) -> None:
    first, _ = admit(daemon, alice)
    assert not registry.lookup([first["device_id"]])[first["device_id"]].moving
    redis.client().hset(f"{registry.PREFIX}node:{daemon.node}", "draining", "1")
    assert registry.lookup([first["device_id"]])[first["device_id"]].moving
