"""`GET /api/audit`: one's own trail, filtered, in pages; nobody else's, and of others no more than needs be."""

import datetime as dt

import pytest
from django.utils import timezone

from apps.accounts import services
from apps.audit.models import AuditEvent
from apps.audit.services import record
from apps.common.actor import Actor
from tests.apps.conftest import PASSWORD, login_as

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def act(user, action="thing.done", at=NOW, **fields):
    actor = Actor(str(user.pk), user.email, "192.0.2.1", "req_1")
    record(actor=actor, action=action, object_type="thing", object_id="7", now=at, **fields)


def listed(api, query=""):
    answer = api("GET", f"/api/audit{query}")
    assert answer.status == 200, answer.json
    return answer.data


def test_an_own_act_with_all_that_is_known_of_it(alice, alice_api):
    act(alice, detail={"a": 1})
    (event,) = listed(alice_api)
    assert event == {
        "id": str(AuditEvent.objects.get().id),
        "at": "2030-01-01T00:00:00Z",
        "by": "self",
        "actor": str(alice.pk),
        "action": "thing.done",
        "object_type": "thing",
        "object_id": "7",
        "address": "192.0.2.1",
        "request_id": "req_1",
        "detail": {"a": 1},
    }


def test_nobody_sees_anothers(alice, alice_api, bob_api, make_user):
    act(alice)
    assert listed(bob_api) == []
    assert listed(login_as(make_user("root@example.com", is_staff=True, is_superuser=True))) == []
    assert len(listed(alice_api)) == 1


def test_failed_logins_show_where_they_came_from(alice, alice_api, anonymous):
    anonymous("POST", "/api/auth/login", {"email": alice.email, "password": "wrong password"})
    (event,) = listed(alice_api)
    assert (event["action"], event["by"], event["actor"]) == ("user.login_failed", "stranger", "")
    assert event["address"] == "127.0.0.1"
    assert anonymous("POST", "/api/auth/login", {"email": alice.email, "password": PASSWORD}).status == 200
    assert [each["action"] for each in listed(alice_api)] == ["user.login", "user.login_failed"]


def test_an_operators_act_shows_without_the_operator(alice, alice_api, bob):
    operator = Actor(str(bob.pk), bob.email, "198.51.100.1", "req_2")
    services.set_active(actor=operator, user_id=alice.pk, active=False, now=timezone.now())
    services.set_active(actor=operator, user_id=alice.pk, active=True, now=timezone.now())
    events = listed(login_as(alice))
    assert {event["action"] for event in events} == {"user.disabled", "user.enabled"}
    assert {(event["by"], event["actor"], event["address"]) for event in events} == {("operator", "", "")}
    assert "bob" not in str(events)


def test_filters(alice, alice_api):
    for hour, action in enumerate(("user.login", "user.logout", "device.rename")):
        act(alice, action, NOW + dt.timedelta(hours=hour))

    def actions(query):
        return [event["action"] for event in listed(alice_api, query)]

    assert actions("?action=user.login") == ["user.login"]
    assert actions("?action=user.") == ["user.logout", "user.login"]
    assert actions("?since=2030-01-01T01:00:00Z") == ["device.rename", "user.logout"]
    assert actions("?until=2030-01-01T01:00:00Z") == ["user.login"]
    assert actions("?since=2030-01-01T01:00:00Z&until=2030-01-01T02:00:00Z") == ["user.logout"]
    assert actions("?ordering=at") == ["user.login", "user.logout", "device.rename"]
    assert actions("?action=cluster.create") == []


def test_pages(alice, alice_api):
    for minute in range(5):
        act(alice, at=NOW + dt.timedelta(minutes=minute))
    first = alice_api("GET", "/api/audit?limit=2")
    assert first.json["meta"]["total"] == 5
    seen, path = [event["at"] for event in first.data], first.json["meta"]["next"]
    while path:
        page = alice_api("GET", path.removeprefix("http://testserver"))
        seen += [event["at"] for event in page.data]
        path = page.json["meta"]["next"]
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 5


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?action=login", "action"),
        ("?action=User.Login", "action"),
        ("?since=yesterday", "since"),
        ("?until=1", "until"),
        ("?limit=0", "limit"),
        ("?limit=201", "limit"),
        ("?ordering=action", "ordering"),
        ("?cursor=x", "cursor"),
        ("?actor=1", "actor"),
        ("?since=2030-01-01T00:00:00Z&since=2030-01-01T00:00:00Z", "since"),
    ],
)
def test_a_bad_query(alice_api, query, field):
    answer = alice_api("GET", f"/api/audit{query}")
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert set(answer.error["details"]) == {field}


def test_who_may(anonymous, alice, alice_api):
    assert anonymous("GET", "/api/audit").status == 401
    assert alice_api("POST", "/api/audit", {}).status == 405
    assert alice_api("GET", "/api/audit/").status == 200
    api = login_as(alice)
    type(alice).objects.filter(pk=alice.pk).update(is_active=False)
    assert api("GET", "/api/audit").status == 401


def test_queries_are_few(alice, alice_api, django_assert_num_queries):
    for minute in range(60):
        act(alice, at=NOW + dt.timedelta(minutes=minute))
    with django_assert_num_queries(3):  # the user, the page, the total
        assert len(listed(alice_api)) == 50
