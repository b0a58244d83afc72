"""The routes of pairing tokens."""

import datetime as dt
import re

import pytest
from django.utils import timezone

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.tunnels import registry
from tests.apps.internal.kit import issue, named, row
from tunnel.contract import hash_token


def test_a_token_and_the_line_to_paste(alice, alice_api, settings):
    settings.VISIONA = {**settings.VISIONA, "TUNNEL_PUBLIC_URL": "https://tunnel.example.com:8443"}
    answer = alice_api("POST", "/api/pairing/token", {"name": "Shop", "ttl_minutes": 5})
    assert answer.status == 201
    assert set(answer.data) == {"id", "token", "name", "expires_at", "command"}
    secret = answer.data["token"]
    assert re.fullmatch(r"vAc_[0-9a-f]{32}", secret)
    assert answer.data["command"] == f"visiona-agent run --url wss://tunnel.example.com:8443 --pairing-token {secret}"
    token = PairingToken.objects.get()
    assert (str(token.id), token.token_hash, token.owner) == (answer.data["id"], hash_token(secret), alice)
    left = dt.datetime.fromisoformat(answer.data["expires_at"]) - timezone.now()
    assert dt.timedelta(minutes=4, seconds=50) < left <= dt.timedelta(minutes=5)
    assert secret not in str(list(AuditEvent.objects.values()))


def test_everything_has_a_default(alice_api):
    answer = alice_api("POST", "/api/pairing/token")
    assert answer.status == 201, answer.json
    left = dt.datetime.fromisoformat(answer.data["expires_at"]) - timezone.now()
    assert dt.timedelta(minutes=59) < left <= dt.timedelta(minutes=60)
    assert "--url ws://localhost:3800 " in answer.data["command"]


@pytest.mark.parametrize("minutes", [1, 10_080])
def test_the_bounds_of_its_life(alice_api, minutes):
    assert alice_api("POST", "/api/pairing/token", {"ttl_minutes": minutes}).status == 201


@pytest.mark.parametrize(
    "body,field",
    [
        ({"ttl_minutes": 0}, "ttl_minutes"),
        ({"ttl_minutes": 10_081}, "ttl_minutes"),
        ({"ttl_minutes": -1}, "ttl_minutes"),
        ({"ttl_minutes": "5"}, "ttl_minutes"),
        ({"ttl_minutes": 1.5}, "ttl_minutes"),
        ({"ttl_minutes": True}, "ttl_minutes"),
        ({"ttl_minutes": None}, "ttl_minutes"),
        ({"name": 1}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\0b"}, "name"),
        ([], "non_field_errors"),
    ],
)
def test_a_bad_body(alice_api, body, field):
    answer = alice_api("POST", "/api/pairing/token", body)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == [field]
    assert PairingToken.objects.count() == 0


def test_the_list_never_shows_a_token(daemon, alice, alice_api):
    used, unused = issue(alice, name="used"), issue(alice, name="unused")
    daemon.ask_all(named(used))
    answer = alice_api("GET", "/api/pairing/tokens")
    assert answer.json["meta"]["total"] == 2
    assert [shown["name"] for shown in answer.data] == ["unused", "used"]
    assert [shown["status"] for shown in answer.data] == ["issued", "consumed"]
    assert set(answer.data[0]) == {
        "id", "name", "status", "device_id", "created_at", "expires_at", "paired_at", "last_used_at",
    }  # fmt: skip
    for secret in (used, unused):
        assert secret not in str(answer.json)
        assert hash_token(secret) not in str(answer.json)


@pytest.mark.parametrize("query", ["limit=0", "ordering=name", "x=1", "cursor=!"])
def test_a_bad_query(alice_api, query):
    assert alice_api("GET", f"/api/pairing/tokens?{query}").code == "VALIDATION_ERROR"


def test_whose_tokens_they_are(alice, alice_api, bob_api, anonymous):
    token_id = row(issue(alice)).id
    path = f"/api/pairing/tokens/{token_id}"
    assert anonymous("POST", "/api/pairing/token", {}).code == "UNAUTHENTICATED"
    assert anonymous("GET", "/api/pairing/tokens").code == "UNAUTHENTICATED"
    assert anonymous("DELETE", path).code == "UNAUTHENTICATED"
    assert bob_api("GET", "/api/pairing/tokens").data == []
    assert bob_api("DELETE", path).code == "NOT_FOUND"
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert alice_api("DELETE", path).status == 401
    assert PairingToken.objects.get().status == PairingStatus.ISSUED


@pytest.mark.parametrize("text", ["x", "0198c0de-0000-7000-8000-00000000abcd", "0" * 64])
def test_what_names_no_token(alice_api, text):
    assert alice_api("DELETE", f"/api/pairing/tokens/{text}").code == "NOT_FOUND"


@pytest.mark.parametrize(
    "method,path", [("GET", "/api/pairing/token"), ("POST", "/api/pairing/tokens"), ("GET", "/api/pairing/tokens/x")]
)
def test_other_methods(alice_api, method, path):
    assert alice_api(method, path).code == "METHOD_NOT_ALLOWED"


def test_revoking_one_that_was_not_used(daemon, alice, alice_api):
    secret = issue(alice)
    path = f"/api/pairing/tokens/{row(secret).id}"
    assert alice_api("DELETE", path).json == {"success": True, "data": None}
    assert alice_api("DELETE", path).status == 200  # once more changes nothing
    assert daemon.ask(secret)["code"] == "TOKEN_REVOKED"
    assert AuditEvent.objects.filter(action="pairing_token.revoke").count() == 1


@pytest.mark.parametrize("make", [named, lambda token: {**named(token), "agent": ""}])
def test_revoking_closes_the_tunnel_that_it_holds(daemon, alice, alice_api, django_capture_on_commit_callbacks, make):
    secret = issue(alice)
    ask = make(secret)
    admitted = daemon.ask_all(ask)[0]
    with django_capture_on_commit_callbacks(execute=True):
        alice_api("DELETE", f"/api/pairing/tokens/{row(secret).id}")
    assert registry.lookup([admitted["device_id"]]) == {}
    assert daemon.beat(count=1)["close"] == [{"session": ask["session"], "code": 4401, "reason": "revoked"}]
    assert daemon.ask_all(make(secret))[0]["code"] == "TOKEN_REVOKED"
    if admitted["session_token"]:
        assert daemon.ask(admitted["session_token"])["code"] == "TOKEN_REVOKED"


def test_revoking_one_whose_device_was_paired_anew_spares_the_device(
    daemon, alice, alice_api, django_capture_on_commit_callbacks
):
    old, new = issue(alice), issue(alice)
    daemon.ask_all(named(old, serial="S-1"))
    admitted = daemon.ask_all(named(new, "b", serial="S-1"))[0]
    with django_capture_on_commit_callbacks(execute=True):
        assert alice_api("DELETE", f"/api/pairing/tokens/{row(old).id}").status == 200
    assert set(registry.lookup([admitted["device_id"]])) == {admitted["device_id"]}
    assert SessionToken.objects.filter(revoked_at=None).count() == 1
