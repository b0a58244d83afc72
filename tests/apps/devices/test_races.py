"""Races on a real PostgreSQL, with threads: one winner, no orphan, no deadlock."""

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from apps.common.errors import DomainError
from apps.devices import admission, services
from apps.devices.models import Device, DeviceEvent
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.pairing.services import revoke_token
from apps.tunnels import registry
from tests.apps.internal.kit import ACTOR, NODE, Daemon, credential, issue, named, row

pytestmark = pytest.mark.django_db(transaction=True)


def race(acts: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run them at once, each in a thread and with a connection of its own; a refusal is a result."""
    barrier = threading.Barrier(len(acts), timeout=20)

    def run(act: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return act()
        except DomainError as error:
            return error.code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(acts)) as executor:
        return list(executor.map(run, acts, timeout=60))


def ask(*credentials: dict[str, Any]) -> Callable[[], Any]:
    return lambda: admission.authenticate(credentials, node=NODE, now=timezone.now())


@pytest.fixture
def daemon(transactional_db: None) -> Daemon:
    node = Daemon()
    node.beat()
    return node


def one_each(results: list[Any]) -> list[Any]:
    return [result[0] for result in results]


def test_fifty_that_say_their_names_redeem_one_token_and_one_wins(daemon, alice):
    secret = issue(alice)
    acts = [ask(named(secret, f"box-{index}", serial=f"S-{index}")) for index in range(50)]
    results = one_each(race(acts))
    winners = [result for result in results if result["ok"]]
    assert len(winners) == 1
    assert {result["code"] for result in results if not result["ok"]} == {"TOKEN_REVOKED"}
    assert Device.objects.get().epoch == 1
    assert str(Device.objects.get().id) == winners[0]["device_id"]
    assert SessionToken.objects.count() == 1
    assert DeviceEvent.objects.count() == 1
    assert row(secret).status == PairingStatus.CONSUMED


def test_fifty_plain_ones_are_one_device_and_the_newest_is_it(daemon, alice):
    secret = issue(alice)
    asks = [credential(secret) for _ in range(50)]
    results = one_each(race([ask(each) for each in asks]))
    admitted = [(result["epoch"], each["session"]) for result, each in zip(results, asks, strict=True) if result["ok"]]
    device = Device.objects.get()
    # One whose presence was written after a newer one's is told to wait: it never was the newest.
    assert {result["code"] for result in results if not result["ok"]} <= {"CONFLICT"}
    assert device.epoch == 50
    entry = registry.lookup([str(device.id)])[str(device.id)]
    assert (entry.epoch, entry.session) == max(admitted)
    assert entry.epoch == 50
    assert registry.sessions_of(NODE) == {entry.session: str(device.id)}


def test_batches_with_the_same_devices_in_other_orders_do_not_deadlock(daemon, alice):
    tokens = [daemon.ask_all(named(issue(alice), f"b{index}"))[0]["session_token"] for index in range(12)]
    forth = [ask(*[named(token) for token in tokens]) for _ in range(3)]
    back = [ask(*[named(token) for token in reversed(tokens)]) for _ in range(3)]
    for results in race([*forth, *back]):
        assert not isinstance(results, str), results
    assert set(Device.objects.values_list("epoch", flat=True)) == {7}


def test_two_tokens_for_one_serial_make_one_device(daemon, alice):
    acts = [ask(named(issue(alice), serial="S-1")) for _ in range(8)]
    results = one_each(race(acts))
    assert all(result["ok"] or result["code"] == "CONFLICT" for result in results)
    device = Device.objects.get()
    assert device.epoch == 8
    assert SessionToken.objects.filter(revoked_at=None).count() == 1
    assert PairingToken.objects.filter(status=PairingStatus.CONSUMED).count() == 1


def test_of_boxes_that_say_one_serial_at_once_one_is_known_by_it(daemon, alice):
    acts = [ask(named(issue(alice), f"box-{index}", serial="S-1")) for index in range(8)]
    results = one_each(race(acts))
    assert all(result["ok"] for result in results)
    devices = Device.objects.all()
    assert sorted((each.serial or "", each.claimed_serial, each.possible_twin) for each in devices) == [
        *[("", "S-1", True)] * 7,
        ("S-1", "", True),
    ]
    assert SessionToken.objects.filter(revoked_at=None).count() == 8


def test_unpair_while_connecting(daemon, alice):
    """Whatever comes first: afterwards nobody is online, and no token is good."""
    for turn in range(5):
        first = daemon.ask_all(named(issue(alice), serial=f"S-{turn}"))[0]
        device_id = uuid.UUID(first["device_id"])

        def unpair(device_id: uuid.UUID = device_id) -> Device:
            return services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=device_id, now=timezone.now())

        race([ask(named(first["session_token"])), unpair, ask(named(first["session_token"]))])
        assert registry.lookup([first["device_id"]]) == {}
        assert not SessionToken.objects.filter(device_id=device_id, revoked_at=None).exists()
        assert daemon.ask(first["session_token"])["code"] == "TOKEN_REVOKED"


def test_of_two_that_unpair_one_does(daemon, alice):
    device = Device.objects.get(id=daemon.ask(issue(alice))["device_id"])

    def unpair() -> str:
        services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=device.id, now=timezone.now())
        return "done"

    assert sorted(race([unpair] * 5)) == ["NOT_FOUND"] * 4 + ["done"]
    assert DeviceEvent.objects.filter(action="unpaired").count() == 1


def test_of_those_that_register_one_serial_one_does(alice):
    def register() -> str:
        services.register_device(
            actor=ACTOR, owner_id=alice.pk, serial="S-1", name="", chip="", metadata={}, now=timezone.now()
        )
        return "done"

    assert sorted(race([register] * 6)) == ["SERIAL_TAKEN"] * 5 + ["done"]
    assert Device.objects.count() == 1


def test_registering_while_pairing_makes_one_live_device(daemon, alice):
    for turn in range(5):
        serial, secret = f"S-{turn}", issue(alice)

        def register(serial: str = serial) -> str:
            services.register_device(
                actor=ACTOR, owner_id=alice.pk, serial=serial, name="", chip="", metadata={}, now=timezone.now()
            )
            return "done"

        registered, paired = race([register, ask(named(secret, serial=serial))])
        assert registered in ("done", "SERIAL_TAKEN")
        assert paired[0]["ok"] is True
        assert Device.objects.filter(serial=serial, deleted_at=None).count() == 1


def test_revoking_while_redeeming_leaves_no_tunnel(daemon, alice):
    for _ in range(5):
        secret = issue(alice)
        token_id = row(secret).id

        def revoke(token_id: uuid.UUID = token_id) -> None:
            revoke_token(actor=ACTOR, token_id=token_id, owner_id=alice.pk, now=timezone.now())

        race([ask(named(secret)), revoke])
        assert row(secret).status == PairingStatus.REVOKED
        assert not SessionToken.objects.filter(revoked_at=None).exists()
        assert registry.online_devices() == set()


def test_unpairing_beside_batches_does_not_deadlock(daemon, alice):
    tokens = [daemon.ask_all(named(issue(alice), f"b{index}"))[0]["session_token"] for index in range(10)]

    def leave() -> int:
        return services.unpair_all(actor=ACTOR, owner_id=alice.pk, now=timezone.now())

    results = race(
        [ask(*[named(token) for token in reversed(tokens)]), leave, ask(*[named(token) for token in tokens])]
    )
    assert results[1] == 10
    assert registry.online_devices() == set()
