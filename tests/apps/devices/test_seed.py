"""`manage.py seed`: idempotent, and a usable token at every start."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from apps.accounts.models import User
from apps.devices.models import Device
from apps.pairing.models import PairingStatus, PairingToken
from apps.tunnels import registry
from tests.apps.internal.kit import named, row


def seed(*options):
    out = io.StringIO()
    call_command("seed", *options, stdout=out)
    return out.getvalue()


def test_the_first_start(db, anonymous):
    facts = json.loads(seed("--json"))
    assert set(facts) == {
        "email",
        "password",
        "user_id",
        "device_id",
        "serial",
        "pairing_token",
        "cluster_id",
        "model_id",
    }
    login = anonymous("POST", "/api/auth/login", {"email": facts["email"], "password": facts["password"]})
    assert login.status == 200
    anonymous.token = login.data["access_token"]
    assert [shown["serial"] for shown in anonymous("GET", "/api/devices").data] == ["DEMO-0001"]
    model = anonymous("GET", f"/api/models/{facts['model_id']}").data
    assert (model["status"], model["size"]) == ("ready", 262_144)
    assert anonymous("GET", f"/api/models/{facts['model_id']}/download").status == 200


def test_a_second_start_adds_nothing_but_a_token_that_works(daemon):
    first, second = (json.loads(seed("--json")) for _ in range(2))
    assert (first["device_id"], first["model_id"]) == (second["device_id"], second["model_id"])
    assert (User.objects.count(), Device.objects.count()) == (1, 1)
    assert row(first["pairing_token"]).status == PairingStatus.REVOKED
    admitted = daemon.ask_all(named(second["pairing_token"], serial=second["serial"]))[0]
    assert admitted["device_id"] == second["device_id"]


def test_a_box_that_kept_its_credential_goes_on_while_seeds_come_and_go(daemon):
    facts = json.loads(seed("--json"))
    session = daemon.ask_all(named(facts["pairing_token"], serial=facts["serial"]))[0]["session_token"]
    json.loads(seed("--json"))
    assert daemon.ask_all(named(session, serial=facts["serial"]))[0]["ok"] is True


def test_a_box_that_lost_its_credential_is_the_same_device(daemon):
    facts = json.loads(seed("--json"))
    daemon.ask_all(named(facts["pairing_token"], serial=facts["serial"]))
    registry.end({facts["device_id"]: 1})
    again = json.loads(seed("--json"))
    admitted = daemon.ask_all(named(again["pairing_token"], "another", serial=facts["serial"]))[0]
    assert admitted["device_id"] == facts["device_id"]


def test_for_people(db):
    text = seed()
    assert "demo@visionA.local" in text
    assert "vAc_" in text
    assert "vAc_" not in seed("--no-token")
    assert PairingToken.objects.filter(status=PairingStatus.ISSUED).count() == 1


def test_an_unpaired_demo_device_is_made_anew(db):
    facts = json.loads(seed("--json"))
    Device.objects.filter(id=facts["device_id"]).update(deleted_at="2026-01-01T00:00:00Z")
    assert json.loads(seed("--json"))["device_id"] != facts["device_id"]


def test_the_static_user_is_told_by_its_text(db, settings):
    settings.VISIONA = {**settings.VISIONA, "STATIC_USER_ID": "demo-user"}
    assert json.loads(seed("--json"))["user_id"] == "demo-user"


def test_not_in_production(db, settings):
    settings.VISIONA = {**settings.VISIONA, "ENV": "production"}
    with pytest.raises(CommandError):
        seed()
    assert User.objects.count() == 0
