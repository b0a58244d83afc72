"""Login sessions: two clocks, the list, ends; who sees which."""

import datetime as dt
import uuid

import pytest
from django.utils import timezone

from apps.accounts import sessions
from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.common import redis
from tests.apps.conftest import Api, login_as

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
IDLE = dt.timedelta(hours=12)
ABSOLUTE = dt.timedelta(days=30)
SECOND = dt.timedelta(seconds=1)


def begin(user_id: uuid.UUID | None = None) -> str:
    token, _ = sessions.create(user_id=user_id or uuid.uuid4(), address="192.0.2.1", agent="a", now=NOW)
    return token


def test_lasts_until_the_idle_clock_runs_out():
    assert sessions.use(begin(), now=NOW + IDLE - SECOND) is not None
    assert sessions.use(begin(), now=NOW + IDLE) is None


def test_use_pushes_the_idle_clock_at_most_once_a_minute():
    token = begin()
    early = sessions.use(token, now=NOW + 59 * SECOND)
    assert early is not None
    assert early.last_used_at == NOW
    late = sessions.use(token, now=NOW + 60 * SECOND)
    assert late is not None
    assert late.last_used_at == NOW + 60 * SECOND
    assert sessions.use(token, now=NOW + 60 * SECOND + IDLE - SECOND) is not None


def test_the_absolute_clock_is_never_pushed():
    token = begin()
    moment = NOW
    while moment + IDLE / 2 < NOW + ABSOLUTE:
        moment += IDLE / 2
        assert sessions.use(token, now=moment) is not None
    assert sessions.use(token, now=NOW + ABSOLUTE) is None
    assert sessions.use(token, now=moment) is None  # and it is gone for good


def test_redis_forgets_it_by_itself():
    user_id = uuid.uuid4()
    token, session = sessions.create(user_id=user_id, address="", agent="", now=NOW)
    lives = redis.client().pttl(f"visiona:login:{session.token_hash}")
    assert 0 < lives <= IDLE.total_seconds() * 1000
    sessions.use(token, now=NOW + ABSOLUTE - IDLE)  # too late on the idle clock
    assert redis.client().exists(f"visiona:login:{session.token_hash}") == 0


def test_the_list_drops_what_is_over():
    user_id = uuid.uuid4()
    begin(user_id)
    token, live = sessions.create(user_id=user_id, address="", agent="", now=NOW + IDLE)
    assert [each.id for each in sessions.list_of(user_id, now=NOW + IDLE)] == [live.id]
    assert sessions.end(live)
    assert not sessions.end(live)
    assert sessions.use(token, now=NOW + IDLE) is None


@pytest.mark.parametrize(
    "header",
    [
        "Bearer vAu_" + "0" * 32,
        "Bearer vAu_short",
        "Bearer",
        "Bearer ",
        "bearer vAc_" + "0" * 32,
        "Basic YWxpY2U6cGFzc3dvcmQ=",
        "vAu_" + "0" * 32,
        "Bearer demo-access-token",
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "Bearer \xff\xfe",
    ],
)
def test_an_unknown_credential_is_unauthenticated(anonymous, db, header):
    answer = anonymous("GET", "/api/auth/me", authorization=header)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="visiona"'


def test_the_scheme_is_case_insensitive(alice_api):
    assert alice_api("GET", "/api/auth/me", authorization=f"bEARER {alice_api.token}").status == 200


def test_a_token_in_the_query_is_no_credential(alice_api, anonymous):
    assert anonymous("GET", f"/api/auth/me?access_token={alice_api.token}").status == 401


def test_logout_ends_this_login_alone(alice, alice_api):
    other = login_as(alice)
    answer = alice_api("POST", "/api/auth/logout")
    assert (answer.status, answer.json) == (200, {"success": True, "data": None})
    assert alice_api("GET", "/api/auth/me").code == "UNAUTHENTICATED"
    assert other("GET", "/api/auth/me").status == 200
    assert AuditEvent.objects.filter(action="user.logout", actor=str(alice.pk)).count() == 1


def test_logout_all_ends_every_login_of_this_user_alone(alice, alice_api, bob_api):
    other = login_as(alice)
    answer = alice_api("POST", "/api/auth/logout-all")
    assert (answer.status, answer.json) == (200, {"success": True, "data": None})
    assert [each("GET", "/api/auth/me").status for each in (alice_api, other, bob_api)] == [401, 401, 200]
    assert AuditEvent.objects.get(action="user.logout_all").detail == {"sessions": 2}


def test_a_disabled_user_is_cut_off_at_once(alice, alice_api):
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert alice_api("GET", "/api/auth/me").code == "UNAUTHENTICATED"


def test_a_deleted_user_is_cut_off_at_once(alice, alice_api):
    alice.delete()
    assert alice_api("GET", "/api/auth/me").code == "UNAUTHENTICATED"


def test_the_list_shows_own_sessions_newest_first(alice, alice_api, bob_api):
    newer = login_as(alice)
    answer = newer("GET", "/api/auth/sessions")
    assert answer.json["meta"] == {"total": 2, "next": None, "previous": None}
    assert [row["current"] for row in answer.data] == [True, False]
    assert set(answer.data[0]) == {
        "id", "created_at", "last_used_at", "expires_at", "address", "agent", "current",
    }  # fmt: skip
    assert newer.token is not None
    assert newer.token not in str(answer.json)


def test_the_list_comes_in_pages(alice, alice_api):
    for _ in range(4):
        login_as(alice)
    first = alice_api("GET", "/api/auth/sessions?limit=2&ordering=created_at")
    second = alice_api("GET", first.json["meta"]["next"])
    third = alice_api("GET", second.json["meta"]["next"])
    assert third.json["meta"]["next"] is None
    seen = [row["id"] for page in (first, second, third) for row in page.data]
    assert len(set(seen)) == 5
    assert alice_api("GET", second.json["meta"]["previous"]).data == first.data
    assert first.json["meta"]["total"] == 5
    assert first.json["meta"]["next"].startswith("http://testserver/api/auth/sessions?")


def test_a_session_can_be_ended_by_its_id(alice, alice_api):
    other = login_as(alice)
    rows = alice_api("GET", "/api/auth/sessions").data
    wanted = next(row["id"] for row in rows if not row["current"])
    answer = alice_api("DELETE", f"/api/auth/sessions/{wanted}")
    assert (answer.status, answer.json) == (200, {"success": True, "data": None})
    assert other("GET", "/api/auth/me").status == 401
    assert alice_api("DELETE", f"/api/auth/sessions/{wanted}").code == "NOT_FOUND"
    assert AuditEvent.objects.get(action="user.session_revoked").detail == {"session": wanted}


def test_another_users_session_is_not_found(alice_api, bob_api):
    bobs = bob_api("GET", "/api/auth/sessions").data[0]["id"]
    assert alice_api("DELETE", f"/api/auth/sessions/{bobs}").code == "NOT_FOUND"
    assert bob_api("GET", "/api/auth/me").status == 200


@pytest.mark.parametrize(
    "bad", ["x", "1", "00000000-0000-0000-0000-00000000000", "{}", "%00", "0198c0de-0000-7000-8000-00000000abcd" + "0"]
)
def test_an_id_that_is_no_uuid_is_not_found(alice_api, bad):
    answer = alice_api("DELETE", f"/api/auth/sessions/{bad}")
    assert (answer.status, answer.code) == (404, "NOT_FOUND")


@pytest.mark.parametrize("api", ["anonymous", "disabled"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/auth/logout"),
        ("POST", "/api/auth/logout-all"),
        ("GET", "/api/auth/me"),
        ("PATCH", "/api/auth/me"),
        ("GET", "/api/auth/sessions"),
        ("DELETE", "/api/auth/sessions/0198c0de-0000-7000-8000-00000000abcd"),
        ("GET", "/api/system/health"),
        ("GET", "/api/system/info"),
    ],
)
def test_every_route_needs_a_credential(anonymous, alice, alice_api, api, method, path):
    caller: Api = anonymous
    if api == "disabled":
        User.objects.filter(pk=alice.pk).update(is_active=False)
        caller = alice_api
    answer = caller(method, path, {})
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=-1", "limit=x", "limit=1.0", "limit=", "limit=1_0", "limit=5&limit=5",
     "ordering=agent", "ordering=", "cursor=x", "cursor=AAAA", "cursor=%00", "cursor=n00", "page=2", "format=json"],
)  # fmt: skip
def test_a_bad_query_value_is_refused_by_name(alice_api, query):
    answer = alice_api("GET", f"/api/auth/sessions?{query}")
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == [query.partition("=")[0]]


def test_a_use_writes_nothing_and_costs_two_queries(alice_api, django_assert_num_queries):
    with django_assert_num_queries(2):  # the user, and what `/me` says of their shares
        alice_api("GET", "/api/auth/me")


def test_sessions_use_real_time(alice):
    api = login_as(alice)
    assert timezone.now() - sessions.list_of(alice.pk, now=timezone.now())[0].created_at < dt.timedelta(minutes=1)
    assert api("GET", "/api/auth/me").status == 200
