"""`POST /api/ws/ticket`: who may have one, for what, and each bad body."""

import datetime as dt
import re

import pytest
from django.utils import timezone

from apps.accounts import sessions
from apps.common import redis
from apps.devices.models import Device
from apps.proxy import tickets
from tests.apps.conftest import Api


@pytest.fixture
def box(alice) -> Device:  # in the place of the scripted one: here nothing is forwarded
    return Device.objects.create(owner=alice, name="box")


def make(api, device, **fields):
    return api("POST", "/api/ws/ticket", {"device_id": str(device.pk), **fields})


def test_a_ticket(alice, alice_api, box):
    asked = timezone.now()
    answer = make(alice_api, box, path_prefix="/ws/inference/")
    assert answer.status == 201
    assert set(answer.data) == {"ticket", "expires_at"}
    assert re.fullmatch(r"[0-9a-f]{32}", answer.data["ticket"])
    ends = dt.datetime.fromisoformat(answer.data["expires_at"])
    assert dt.timedelta(seconds=59) < ends - asked < dt.timedelta(seconds=62)
    found = tickets.find(answer.data["ticket"])
    (login,) = sessions.list_of(alice.pk, now=timezone.now())
    assert found is not None
    assert (found.user_id, found.device_id, found.login) == (alice.pk, str(box.pk), login.token_hash)
    assert 55 <= redis.client().ttl(found.key) <= 60
    assert answer.data["ticket"] not in str(redis.client().keys("*"))  # kept as a hash


def test_without_a_prefix_every_path(alice_api, box):
    found = tickets.find(make(alice_api, box).data["ticket"])
    assert found is not None
    assert found.covers(b"/anything")


def test_a_reusable_one(alice, alice_api, bob_api, box):
    answer = make(alice_api, box, path_prefix="/video", reusable=True)
    assert answer.status == 201
    left = dt.datetime.fromisoformat(answer.data["expires_at"]) - timezone.now()
    assert dt.timedelta(seconds=890) < left <= dt.timedelta(seconds=900)
    found = tickets.find(answer.data["ticket"])
    assert found is not None
    assert (found.reusable, found.path_prefix, found.user_id) == (True, "/video", alice.pk)
    assert 890 <= redis.client().ttl(found.key) <= 900


def test_reusable_ones_need_a_prefix_of_their_own(alice_api, box):
    answer = make(alice_api, box, reusable=True)
    assert (answer.status, answer.code, list(answer.error["details"])) == (400, "VALIDATION_ERROR", ["path_prefix"])
    assert make(alice_api, box, reusable=False).status == 201
    for no_flag in ("maybe", "true", 0, 1, None, []):
        answer = make(alice_api, box, path_prefix="/x", reusable=no_flag)
        assert (answer.code, list(answer.error["details"])) == ("VALIDATION_ERROR", ["reusable"])


def test_a_hundred_reusable_ones_live_at_once(alice, alice_api, box):
    now = timezone.now()
    one = {"user_id": alice.pk, "login": "", "device_id": box.pk, "path_prefix": "/x", "reusable": True}
    for second in range(tickets.REUSABLE_MAX):
        tickets.issue(**one, now=now - dt.timedelta(seconds=100 - second))
    answer = make(alice_api, box, path_prefix="/x", reusable=True)
    assert (answer.status, answer.code) == (429, "QUOTA_EXCEEDED")
    assert answer.error["details"] == {"quota": ["reusable_tickets"], "limit": ["100"], "used": ["100"]}
    assert 790 <= int(answer.headers["Retry-After"]) <= 800
    assert make(alice_api, box).status == 201  # for one use there are always more
    with pytest.raises(tickets.TooMany):
        tickets.issue(**one, now=now)
    tickets.issue(**one, now=now + dt.timedelta(seconds=801))  # the first has ended


def test_strangers(anonymous, box):
    assert make(anonymous, box).code == "UNAUTHENTICATED"
    assert make(Api("vAu_" + "0" * 32), box).code == "UNAUTHENTICATED"


def test_of_an_own_device_alone(alice_api, bob_api, box):
    assert (make(bob_api, box).status, make(bob_api, box).code) == (404, "NOT_FOUND")
    Device.objects.filter(pk=box.pk).update(deleted_at=timezone.now())
    assert make(alice_api, box).code == "NOT_FOUND"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method(alice_api, method):
    answer = alice_api(method, "/api/ws/ticket")
    assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("device_id", [None, "", "x", 7, [], {}, "0" * 32, "urn:uuid:" + "0" * 8, True])
def test_a_bad_device(alice_api, device_id):
    answer = alice_api("POST", "/api/ws/ticket", {"device_id": device_id})
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == ["device_id"]


@pytest.mark.parametrize(
    "prefix", [None, "", "x", 7, [], "/a b", "/a?b", "/a#b", "/é", "/\n", "/a\n", "/a\0", "/" + "x" * 2048, " /a"]
)
def test_a_bad_prefix(alice_api, box, prefix):
    answer = make(alice_api, box, path_prefix=prefix)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == ["path_prefix"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"{}"])
def test_a_body_that_is_none(alice_api, body):
    assert alice_api("POST", "/api/ws/ticket", body).status == 400


def test_a_query(alice_api, box):
    answer = alice_api("POST", "/api/ws/ticket?x=1", {"device_id": str(box.pk)})
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "prefix,path,covered",
    [
        ("/", b"/", True), ("/", b"/a/b", True), ("/a", b"/a", True), ("/a", b"/a/", True), ("/a/", b"/a", True),
        ("/a", b"/a/b%2Fc", True), ("/a", b"/ab", False), ("/a", b"/", False), ("/a/b", b"/a", False),
        ("/a", b"/%61/b", True), ("/%61", b"/a", True), ("/a/b", b"/a%2Fb", False), ("/a", b"//a", False),
        ("/a//b", b"/a//b", True), ("/a//b", b"/a/b", False), ("/a", b"/A", False),
    ],
)  # fmt: skip
def test_paths_below_a_prefix(prefix, path, covered, alice, box):
    text, _ = tickets.issue(user_id=alice.pk, login="", device_id=box.pk, path_prefix=prefix, now=timezone.now())
    found = tickets.find(text)
    assert found is not None
    assert found.covers(path) is covered
