"""Heartbeats, events, and PostgreSQL's copy of who is connected."""

import datetime as dt
import uuid

import pytest
from django.utils import timezone

from apps.accounts.models import User
from apps.common import redis
from apps.devices import presence, services
from apps.devices.models import Device, DeviceEvent, LinkStatus
from apps.pairing.models import SessionToken
from apps.pairing.services import revoke_session_token
from apps.tunnels import registry
from tests.apps.internal.kit import ACTOR, URL, Daemon, device_of, event, fact, issue, named, settle
from tunnel.contract import session_mark, sessions_digest

SECOND = "0198c000-0000-7000-8000-000000000002"


@pytest.fixture
def box(daemon, alice):
    """An admitted agent: the answer, and its session's id."""
    ask = named(issue(alice))
    return daemon.ask_all(ask)[0], ask["session"]


def orders(answer):
    return {(order["session"], order["code"], order["reason"]) for order in answer["close"]}


# --- heartbeats -------------------------------------------------------------------------------------------------------
def test_a_known_node_whose_count_is_right_closes_nothing(daemon, box):
    assert daemon.beat(count=1) == {"close": [], "send_sessions": False}


@pytest.mark.parametrize("count", [0, 2])
def test_a_count_that_differs_asks_for_the_full_list(daemon, box, count):
    assert daemon.beat(count=count)["send_sessions"] is True


def test_an_unknown_node_is_asked_for_its_list_once(db):
    assert Daemon().beat()["send_sessions"] is True
    assert Daemon().beat(sessions=[])["send_sessions"] is False
    assert Daemon().beat()["send_sessions"] is False


def test_after_a_loss_of_redis_the_full_list_brings_everything_back(daemon, box):
    admitted, session = box
    redis.client().flushdb()
    assert registry.lookup([admitted["device_id"]]) == {}
    assert daemon.beat(count=1)["send_sessions"] is True
    assert daemon.beat([fact(admitted, session)]) == {"close": [], "send_sessions": False}
    entry = registry.lookup([admitted["device_id"]])[admitted["device_id"]]
    assert (entry.session, entry.epoch) == (session, admitted["epoch"])
    assert daemon.beat(count=1)["send_sessions"] is False


@pytest.mark.parametrize("lost", ["device:{device}", "user:{user}", "sessions:{node}", "node:{node}"])
@pytest.mark.parametrize("digest", [True, False], ids=["this release", "the one before"])
def test_a_key_that_is_lost_is_back_within_two_heartbeats(daemon, box, alice, lost, digest):
    """An eviction takes one key and leaves the others: the box looks offline while its tunnel is up."""
    admitted, session = box
    told = fact(admitted, session)
    daemon.beat([told])
    key = registry.PREFIX + lost.format(device=admitted["device_id"], user=alice.pk, node=daemon.node)
    assert redis.client().delete(key) == 1
    first = daemon.beat(count=1, digest=digest_of(told) if digest else None)
    assert first == {"close": [], "send_sessions": True}
    assert daemon.beat([told], digest=digest_of(told) if digest else None) == {"close": [], "send_sessions": False}
    assert registry.lookup([admitted["device_id"]])[admitted["device_id"]].session == session
    assert set(registry.lookup_user(str(alice.pk))) == {admitted["device_id"]}
    assert daemon.beat(count=1, digest=digest_of(told) if digest else None)["send_sessions"] is False


def test_as_many_sessions_but_others_are_asked_for(daemon, box):
    admitted, session = box
    assert daemon.beat(count=1, digest=digest_of(fact(admitted, session)))["send_sessions"] is False
    assert daemon.beat(count=1, digest=digest_of(fact(admitted, str(uuid.uuid4()))))["send_sessions"] is True


def digest_of(*told):
    mark = 0
    for each in told:
        mark ^= session_mark(each["session"], each["device_id"])
    return sessions_digest(mark)


def test_a_full_list_closes_what_was_replaced_unpaired_disabled_or_never_was(daemon, alice, bob):
    asks = [named(issue(alice), f"b{index}") for index in range(3)] + [named(issue(bob))]
    admitted = daemon.ask_all(*asks)
    Device.objects.filter(id=admitted[0]["device_id"]).update(epoch=7)
    Device.objects.filter(id=admitted[1]["device_id"]).update(deleted_at=timezone.now())
    User.objects.filter(pk=bob.pk).update(is_active=False)
    ghost = {"device_id": str(uuid.uuid4()), "user_id": str(alice.pk), "epoch": 1}
    ghost_session = str(uuid.uuid4())
    redis.client().flushdb()
    listed = [fact(answer, ask["session"]) for answer, ask in zip(admitted, asks, strict=True)]
    answer = daemon.beat([*listed, fact(ghost, ghost_session)])
    assert orders(answer) == {
        (asks[0]["session"], 4409, "replaced"),
        (asks[1]["session"], 4401, "revoked"),
        (asks[3]["session"], 4403, "disabled"),
        (ghost_session, 4401, "revoked"),
    }
    assert registry.online_devices() == {admitted[2]["device_id"]}


def test_a_full_list_is_checked_in_one_query(daemon, alice, django_assert_num_queries):
    asks = [named(issue(alice), f"b{index}") for index in range(20)]
    listed = [fact(answer, ask["session"]) for answer, ask in zip(daemon.ask_all(*asks), asks, strict=True)]
    with django_assert_num_queries(1):
        daemon.beat(listed)


def test_any_heartbeat_closes_the_tunnels_of_a_disabled_user(daemon, box, alice):
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert orders(daemon.beat(count=1)) == {(box[1], 4403, "disabled")}


def test_any_heartbeat_closes_the_tunnel_of_a_device_without_a_good_token(daemon, box):
    SessionToken.objects.update(revoked_at=timezone.now())
    assert orders(daemon.beat(count=1)) == {(box[1], 4401, "revoked")}


def test_a_close_that_could_not_be_made_is_told_with_the_heartbeat(daemon, box, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        revoke_session_token(actor=ACTOR, token_id=SessionToken.objects.get().id, now=timezone.now())
    assert registry.lookup([box[0]["device_id"]]) == {}
    assert (box[1], 4401, "revoked") in orders(daemon.beat(count=1))


def test_an_ended_session_in_a_late_full_list_is_not_brought_back(daemon, box):
    admitted, session = box
    daemon.tell(event("disconnected", admitted, session))
    daemon.beat([fact(admitted, session)])
    assert registry.lookup([admitted["device_id"]]) == {}


def test_an_older_daemon_of_the_same_url_is_not_listened_to(daemon, box):
    younger = Daemon(SECOND, URL)
    younger.beat()
    assert registry.lookup([box[0]["device_id"]]) == {}
    assert daemon.beat(count=1) == {"close": [], "send_sessions": False}
    assert [node.node for node in registry.nodes()] == [SECOND]


# --- events -----------------------------------------------------------------------------------------------------------
def test_a_connect_and_a_disconnect_are_noted(daemon, box):
    admitted, session = box
    assert daemon.tell(event("connected", admitted, session)) == 1
    assert device_of(admitted).link_status == LinkStatus.ONLINE
    assert daemon.tell(event("disconnected", admitted, session, reason="liveness", code=4408)) == 1
    assert device_of(admitted).link_status == LinkStatus.OFFLINE
    assert registry.lookup([admitted["device_id"]]) == {}
    newest = DeviceEvent.objects.first()
    assert newest.action == "disconnected"
    assert newest.detail["reason"] == "liveness"
    assert newest.detail["code"] == 4408
    assert (newest.detail["bytes_in"], newest.detail["bytes_out"], newest.detail["streams"]) == (1, 2, 3)


def test_both_in_one_batch_end_offline(daemon, box):
    assert daemon.tell(event("connected", *box), event("disconnected", *box)) == 2
    assert device_of(box[0]).link_status == LinkStatus.OFFLINE


def test_what_is_told_twice_is_noted_once(daemon, box):
    told = [event("connected", *box), event("disconnected", *box)]
    daemon.tell(*told)
    daemon.tell(*told)
    assert DeviceEvent.objects.exclude(action="paired").count() == 2


def test_an_older_epoch_changes_nothing(daemon, box):
    admitted, session = box
    newer = daemon.ask_all(named(admitted["session_token"]))[0]
    before = DeviceEvent.objects.count()
    Device.objects.update(link_status=LinkStatus.ONLINE, last_seen_at=None)
    assert daemon.tell(event("connected", admitted, session), event("disconnected", admitted, session)) == 0
    device = device_of(admitted)
    assert (device.link_status, device.last_seen_at) == (LinkStatus.ONLINE, None)
    assert DeviceEvent.objects.count() == before
    assert registry.lookup([admitted["device_id"]])[admitted["device_id"]].epoch == newer["epoch"]


def test_an_event_of_the_future_happened_now(daemon, box):
    daemon.tell(event("connected", *box, at="2999-01-01T00:00:00Z"))
    assert DeviceEvent.objects.first().at <= timezone.now()


def test_a_device_that_nobody_knows(daemon):
    ghost = {"device_id": str(uuid.uuid4()), "user_id": str(uuid.uuid4()), "epoch": 1}
    assert daemon.tell(event("connected", ghost, str(uuid.uuid4()))) == 0
    assert DeviceEvent.objects.count() == 0


def test_a_batch_costs_a_fixed_number_of_queries(daemon, alice, django_assert_max_num_queries):
    asks = [named(issue(alice), f"b{index}") for index in range(30)]
    told = [event("connected", answer, ask["session"]) for answer, ask in zip(daemon.ask_all(*asks), asks, strict=True)]
    with django_assert_max_num_queries(6):
        assert daemon.tell(*told) == 30


# --- PostgreSQL's copy ------------------------------------------------------------------------------------------------
def test_the_table_follows_the_registry_both_ways(daemon, box):
    settle()
    now = timezone.now()
    assert presence.follow_registry(now=now) == {"online": 1, "offline": 0, "seen": 0}
    assert device_of(box[0]).link_status == LinkStatus.ONLINE
    assert presence.follow_registry(now=now) == {"online": 0, "offline": 0, "seen": 0}
    registry.remove([(box[0]["device_id"], box[1])])
    assert presence.follow_registry(now=now) == {"online": 0, "offline": 1, "seen": 0}
    assert device_of(box[0]).link_status == LinkStatus.OFFLINE


def test_the_devices_of_a_killed_daemon_are_offline_and_their_history_says_so(daemon, box):
    settle()
    daemon.tell(event("connected", *box))
    redis.client().delete(f"{registry.PREFIX}node:{daemon.node}")
    presence.follow_registry(now=timezone.now())
    assert device_of(box[0]).link_status == LinkStatus.OFFLINE
    assert DeviceEvent.objects.first().detail["reason"] == "lost"


def test_after_a_loss_of_redis_nobody_is_taken_for_offline_before_the_daemons_could_tell(daemon, box):
    daemon.tell(event("connected", *box))
    settle()
    redis.client().flushdb()
    assert presence.follow_registry(now=timezone.now())["offline"] == 0
    daemon.beat(count=1)
    daemon.beat([fact(*box)])
    settle()
    assert presence.follow_registry(now=timezone.now()) == {"online": 0, "offline": 0, "seen": 0}
    assert device_of(box[0]).link_status == LinkStatus.ONLINE
    assert not DeviceEvent.objects.filter(action="disconnected").exists()


def test_last_seen_of_one_that_stays_follows_within_half_a_minute(daemon, box):
    now = timezone.now()
    presence.follow_registry(now=now)
    assert presence.follow_registry(now=now + dt.timedelta(seconds=29))["seen"] == 0
    assert presence.follow_registry(now=now + dt.timedelta(seconds=31))["seen"] == 1
    assert device_of(box[0]).last_seen_at == now + dt.timedelta(seconds=31)


def test_only_what_differs_is_written(daemon, box, django_assert_num_queries):
    presence.follow_registry(now=timezone.now())
    with django_assert_num_queries(2):  # who is believed online, and one look for those not seen for long
        presence.follow_registry(now=timezone.now())


def test_tunnels_that_must_not_be_are_closed_by_the_job_too(daemon, box, alice):
    assert presence.close_forbidden() == 0
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert presence.close_forbidden() == 1
    assert registry.lookup([box[0]["device_id"]]) == {}
    assert orders(daemon.beat(count=1)) == {(box[1], 4403, "disabled")}


def test_an_unpaired_device_is_closed_as_revoked(daemon, box, alice):
    device_id = uuid.UUID(box[0]["device_id"])
    services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=device_id, now=timezone.now())
    assert presence.close_forbidden() == 1
    assert orders(daemon.beat(count=1)) == {(box[1], 4401, "revoked")}


def test_since_when_a_box_is_connected_does_not_move_with_the_full_list(daemon, alice, alice_api):
    """The daemon's clock names the same moment some milliseconds later."""
    ask = named(issue(alice))
    admitted = daemon.ask_all(ask)[0]
    (since,) = [each["connected_at"] for each in alice_api("GET", "/api/devices").data]
    daemon.beat([fact(admitted, ask["session"])])
    assert [each["connected_at"] for each in alice_api("GET", "/api/devices").data] == [since]
    redis.client().flushdb()  # all is lost: then the daemon's word is all there is
    daemon.beat()
    daemon.beat([fact(admitted, ask["session"])])
    assert [each.connected_at for each in registry.lookup([admitted["device_id"]]).values()] == ["2026-01-01T00:00:00Z"]
