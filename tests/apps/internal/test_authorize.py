"""`POST /internal/authorize`: may this caller reach this device? The same words as on the DRF lane."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis.exceptions
from django.db import connection, connections
from django.utils import timezone

from apps.accounts import demo, sessions
from apps.accounts.models import User
from apps.common.redis import scripts
from apps.devices.models import Device
from apps.proxy import tickets
from apps.tunnels import registry
from tests.apps.internal.kit import URL, online_device

OWN = "http://localhost:3000"


def log_in(user):
    return sessions.create(user_id=user.pk, address="192.0.2.1", agent="tests", now=timezone.now())


@pytest.fixture
def online(daemon):
    """Makes an online device of an owner."""
    return online_device


@pytest.fixture
def ask(daemon):
    return daemon.authorize


def refusal(answer):
    told = answer.data
    assert told["allowed"] is False
    return told["status"], told["code"]


def ticket_for(user, device, login="", prefix="/"):
    text, _ = tickets.issue(user_id=user.pk, login=login, device_id=device.pk, path_prefix=prefix, now=timezone.now())
    return text


def test_a_login_reaches_its_own_device(ask, online, alice):
    device = online(alice)
    token, login = log_in(alice)
    told = ask(token=token, device=str(device.pk)).data
    entry = registry.lookup([str(device.pk)])[str(device.pk)]
    assert told == {
        "allowed": True, "device_id": str(device.pk), "epoch": 3, "session": entry.session, "node_url": URL,
        "user_id": str(alice.pk), "login": login.token_hash, "ttl": 5.0, "body_max": 1 << 30,
    }  # fmt: skip


def test_a_named_device_costs_one_query_and_one_trip(ask, online, alice, django_assert_num_queries, monkeypatch):
    device = online(alice)
    token, _ = log_in(alice)
    monkeypatch.setattr(scripts, "run", lambda *_: pytest.fail("a trip of its own"))
    with django_assert_num_queries(1):
        assert ask(token=token, device=str(device.pk)).data["allowed"] is True


def test_the_only_one_online_needs_no_name(ask, online, alice, bob):
    device, _ = online(alice), online(bob)
    token, _ = log_in(alice)
    assert ask(token=token).data["device_id"] == str(device.pk)
    other = online(alice)
    told = ask(token=token)
    assert refusal(told) == (409, "AMBIGUOUS_DEVICE")
    assert set(told.data["details"]["devices"]) == {str(device.pk), str(other.pk)}


def test_none_online(ask, alice, daemon):
    device = Device.objects.create(owner=alice, name="box")
    token, _ = log_in(alice)
    for named in ("", str(device.pk)):
        told = ask(token=token, device=named)
        assert refusal(told) == (503, "TUNNEL_DISCONNECTED")
        assert told.data["retry_after"] == 5


@pytest.mark.parametrize("token", ["", "x", "vAu_" + "0" * 32, "vAs_" + "0" * 32, demo.STATIC_TOKEN, "vAu_é"])
@pytest.mark.parametrize("kind", ["bearer", "ticket", "login", "none"])
@pytest.mark.parametrize("named", [True, False])
def test_strangers(ask, online, alice, kind, token, named):
    device = online(alice)
    assert refusal(ask(kind=kind, token=token, device=str(device.pk) if named else "")) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize("named", [True, False])
def test_a_login_that_is_over(ask, online, alice, named):
    device = online(alice)
    token, login = log_in(alice)
    sessions.end(login)
    assert refusal(ask(token=token, device=str(device.pk) if named else ""))[0] == 401
    assert refusal(ask(kind="login", token=login.token_hash, device=str(device.pk) if named else ""))[0] == 401


@pytest.mark.parametrize("named", ["own", "other", ""])
def test_a_disabled_user(ask, online, alice, bob, named):
    devices = {"own": str(online(alice).pk), "other": str(online(bob).pk), "": ""}
    token, _ = log_in(alice)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert refusal(ask(token=token, device=devices[named])) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize("staff", [False, True])
def test_what_is_not_the_users_looks_like_nothing(ask, online, alice, bob, staff):
    User.objects.filter(pk=alice.pk).update(is_staff=staff, is_superuser=staff)
    online(alice)
    theirs, gone = online(bob), online(alice)
    Device.objects.filter(pk=gone.pk).update(deleted_at=timezone.now())
    token, _ = log_in(alice)
    for device in (str(theirs.pk), str(gone.pk), str(uuid.uuid4()), "x", "all", str(theirs.pk) + "0"):
        assert refusal(ask(token=token, device=device)) == (404, "NOT_FOUND")


def test_a_running_stream_is_asked_for_by_its_login(ask, online, alice):
    device = online(alice)
    _, login = log_in(alice)
    ticket = ticket_for(alice, device, login.token_hash)
    told = ask(kind="ticket", token=ticket).data
    again = ask(kind="login", token=told["login"], device=told["device_id"]).data
    assert again == told


@pytest.mark.parametrize(
    "origin,allowed",
    [
        ("", True), (OWN, True), ("http://LOCALHOST:3000", True), ("http://localhost:3721", True),
        ("http://localhost:3800", True), ("http://tunnel.example", True), ("https://tunnel.example", True),
        ("http://tunnel.example:81", False), ("https://localhost:3000", True), ("http://localhost:3001", True),
        ("null", False), ("http://evil.example", False), ("tunnel.example", False),
        ("http://tunnel.example.evil", False),
        ("http://x@tunnel.example", False), ("file://tunnel.example", False), ("http://tunnel.example:x", False),
        ("http://[", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["bearer", "ticket"])
def test_the_page_that_asks(ask, online, alice, origin, allowed, kind):
    device = online(alice)
    token = log_in(alice)[0] if kind == "bearer" else ticket_for(alice, device, log_in(alice)[1].token_hash)
    told = ask(kind=kind, token=token, device=str(device.pk), websocket=True, origin=origin)
    if allowed:
        assert told.data["allowed"] is True
    else:
        assert refusal(told) == (403, "FORBIDDEN")
        assert ask(kind=kind, token=token, device=str(device.pk), websocket=True).data["allowed"] is True  # unspent


def test_a_bearer_without_a_websocket_may_come_from_anywhere(ask, online, alice):
    device = online(alice)
    token, _ = log_in(alice)
    assert ask(token=token, device=str(device.pk), origin="http://evil.example").data["allowed"] is True


def test_a_ticket_is_used_once(ask, online, alice):
    device = online(alice)
    _, login = log_in(alice)
    ticket = ticket_for(alice, device, login.token_hash)
    assert ask(kind="ticket", token=ticket).data["device_id"] == str(device.pk)
    assert refusal(ask(kind="ticket", token=ticket)) == (401, "UNAUTHENTICATED")


def test_a_ticket_that_is_asked_about_alone_is_left_as_it_is(ask, online, alice):
    device = online(alice)
    _, login = log_in(alice)
    good = {"kind": "ticket", "token": ticket_for(alice, device, login.token_hash, "/a"), "path": "/a"}
    assert ask(**good, spend=False).data["allowed"] is True
    assert refusal(ask(**good | {"path": "/b"}, spend=False)) == (403, "FORBIDDEN")
    assert ask(**good).data["allowed"] is True
    assert refusal(ask(**good, spend=False)) == (401, "UNAUTHENTICATED")


@pytest.mark.django_db(transaction=True)
def test_of_twenty_uses_at_once_one_wins(ask, online, alice):
    device = online(alice)
    _, login = log_in(alice)
    ticket = ticket_for(alice, device, login.token_hash)

    def use(_):
        try:
            return ask(kind="ticket", token=ticket).data["allowed"]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(use, range(20))) == [False] * 19 + [True]
    assert connection.is_usable()


def test_a_ticket_dies_with_its_login(ask, online, alice):
    device = online(alice)
    _, login = log_in(alice)
    ticket = ticket_for(alice, device, login.token_hash)
    sessions.end(login)
    assert refusal(ask(kind="ticket", token=ticket)) == (401, "UNAUTHENTICATED")


def test_a_ticket_for_another_device_or_path(ask, online, alice, bob):
    device, other = online(alice), online(alice)
    _, login = log_in(alice)
    ticket = ticket_for(alice, device, login.token_hash, "/ws/inference")
    good = {"kind": "ticket", "token": ticket, "path": "/ws/inference"}
    for wrong in (
        {"device": str(other.pk)}, {"device": str(online(bob).pk)}, {"path": "/ws/inferences"}, {"path": "/ws"},
        {"path": "/"}, {"path": "/ws%2Finference"}, {"path": "//ws/inference"}, {"path": "/ws//inference"},
    ):  # fmt: skip
        assert refusal(ask(**good | wrong)) == (403, "FORBIDDEN")
    assert refusal(ask(**good, device="x")) == (404, "NOT_FOUND")
    assert refusal(ask(**good, method="POST")) == (401, "UNAUTHENTICATED")
    assert ask(**good | {"path": "/ws/infer%65nce/deep"}).data["allowed"] is True


def test_the_ticket_of_an_offline_device_stays(ask, online, alice):
    device = online(alice)
    _, login = log_in(alice)
    ticket = ticket_for(alice, device, login.token_hash, "/video")
    entry = registry.lookup([str(device.pk)])[str(device.pk)]
    registry.remove([(str(device.pk), entry.session)])
    for path in ("/video", "/another"):  # as on port 3721, where the device is looked at first
        assert refusal(ask(kind="ticket", token=ticket, path=path)) == (503, "TUNNEL_DISCONNECTED")
    assert tickets.find(ticket) is not None


def test_the_static_user(ask, online, db, settings):
    settings.VISIONA = {**settings.VISIONA, "STATIC_USER_ID": "demo-user"}
    user = demo.ensure_demo_user()
    device = online(user)
    for kind, token in (("none", ""), ("bearer", demo.STATIC_TOKEN), ("ticket", ticket_for(user, device))):
        told = ask(kind=kind, token=token, device=str(device.pk)).data
        assert (told["allowed"], told["user_id"], told["login"]) == (True, str(user.pk), "")
        told = ask(kind=kind, token=token, device=str(device.pk), origin="http://evil.example")
        assert told.data["allowed"] is False
    assert refusal(ask(kind="none", device=str(device.pk), origin="http://evil.example")) == (403, "FORBIDDEN")
    assert ask(kind="none", device=str(device.pk), origin="http://localhost:5173").data["allowed"] is True
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert refusal(ask(kind="none")) == (401, "UNAUTHENTICATED")


def test_a_look_up_that_failed_refuses_nobody(ask, online, alice, monkeypatch):
    device = online(alice)
    token, _ = log_in(alice)

    def away(*_args, **_kwargs):
        raise redis.exceptions.ConnectionError

    monkeypatch.setattr("redis.client.Pipeline.execute", away)
    answer = ask(token=token, device=str(device.pk))
    assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")


@pytest.mark.parametrize(
    "wrong",
    [
        {"node": "x"}, {"kind": "cookie"}, {"kind": 1}, {"token": None}, {"token": "x" * 16_385}, {"device": 1},
        {"path": "x"}, {"path": ""}, {"path": "/é"}, {"path": "/" * 65537}, {"websocket": "yes"}, {"websocket": None},
        {"method": 1}, {"origin": 1}, {"host": []}, {"address": None}, {"request_id": 2},
    ],
)  # fmt: skip
def test_a_message_that_is_none(ask, db, wrong):
    answer = ask(**wrong)
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")


def test_a_device_that_changes_daemons_is_told_as_such(online, ask, alice):
    device = online(alice)
    token, _ = log_in(alice)
    assert "moving" not in ask(token=token, device=str(device.pk)).data
    entry = registry.lookup([str(device.pk)])[str(device.pk)]
    registry.remove([(str(device.pk), entry.session)], drained=True)
    told = ask(token=token, device=str(device.pk)).data
    assert (told["allowed"], told["session"], told["moving"], told["epoch"]) == (True, "", True, 3)


def test_a_limit_of_the_fast_lane(ask, online, alice, bob, settings):
    """Counted for the user; nothing is to be remembered meanwhile; what runs already is not counted."""
    settings.VISIONA = {**settings.VISIONA, "THROTTLE_FAST_LANE": 2}
    device, others = online(alice), online(bob)
    token, login = log_in(alice)
    for _ in range(2):
        told = ask(token=token, device=str(device.pk)).data
        assert (told["allowed"], told["ttl"]) == (True, 0)
    refused = ask(token=token, device=str(device.pk))
    assert refusal(refused) == (429, "RATE_LIMITED")
    assert refused.data["headers"]["RateLimit-Limit"] == "2"
    assert refused.data["headers"]["RateLimit-Reset"] == str(refused.data["retry_after"])
    assert ask(kind="login", token=login.token_hash, device=str(device.pk)).data["allowed"]
    assert ask(kind="ticket", token=ticket_for(alice, device, login.token_hash), device=str(device.pk)).data["allowed"]
    assert ask(token=log_in(bob)[0], device=str(others.pk)).data["allowed"]
