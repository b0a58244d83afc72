"""The admin of devices and tokens: usable by staff, shut for others, no secret shown, every act audited."""

import re
from datetime import datetime

import pytest
import redis as redis_package
from django.test import Client
from django.utils import timezone

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.devices.models import Accelerator, Device, DeviceEvent
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.tunnels import daemon as daemon_client
from apps.tunnels import registry
from tests.apps.internal.kit import device_of, event, issue, named, row

LISTS = [
    "devices/device", "devices/accelerator", "devices/deviceevent", "pairing/pairingtoken", "pairing/sessiontoken",
]  # fmt: skip


@pytest.fixture
def staff(db):
    user = User.objects.create_superuser("staff@example.com", "x")
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def box(daemon, alice):
    """A paired device with everything: its answer, its pairing token, its session's id."""
    secret = issue(alice, name="Shop")
    ask = named(secret, serial="S-1", chip="KL720")
    admitted = daemon.ask_all(ask)[0]
    daemon.tell(event("connected", admitted, ask["session"]))
    Accelerator.objects.create(device=device_of(admitted), serial="ACC-1", chip="KL720", seen_at=timezone.now())
    return admitted, secret, ask["session"]


def page(client, path, **query):
    response = client.get(f"/admin/{path}", query)
    assert response.status_code == 200, response
    return response.content.decode()


@pytest.mark.parametrize("path", LISTS)
def test_lists_open_and_search(staff, box, path):
    page(staff, f"{path}/")
    page(staff, f"{path}/", q="S-1")
    page(staff, f"{path}/", q=box[0]["device_id"])


@pytest.mark.parametrize("path", LISTS)
def test_others_are_refused(box, alice, path):
    client = Client()
    assert client.get(f"/admin/{path}/").status_code == 302
    client.force_login(alice)
    assert client.get(f"/admin/{path}/").status_code == 302
    helper = User.objects.create_user("helper@example.com", "x", is_staff=True)  # staff without the permission
    client.force_login(helper)
    assert client.get(f"/admin/{path}/").status_code == 403


@pytest.mark.parametrize("path", LISTS)
def test_lists_cost_the_same_for_many_rows(staff, daemon, alice, path, django_assert_max_num_queries):
    asks = [named(issue(alice), f"b{n}") for n in range(30)]
    for admitted, ask in zip(daemon.ask_all(*asks), asks, strict=True):
        daemon.tell(event("connected", admitted, ask["session"]))
        Accelerator.objects.create(device=device_of(admitted), serial="A", seen_at=timezone.now())
    with django_assert_max_num_queries(9):
        page(staff, f"{path}/")


@pytest.mark.parametrize("path", LISTS)
def test_nothing_is_added_or_deleted_by_hand(staff, box, path):
    assert staff.get(f"/admin/{path}/add/").status_code == 403
    assert "delete_selected" not in page(staff, f"{path}/")


def test_the_device_list_shows_who_is_connected_now(staff, box):
    text = page(staff, "devices/device/")
    assert "alice@example.com" in text
    assert "Shop" in text
    assert ">online<" in "".join(text.split())
    registry.end({box[0]["device_id"]: 1})
    assert ">offline<" in "".join(page(staff, "devices/device/").split())


def test_filters_by_the_link(staff, box, alice):
    Device.objects.create(owner=alice, name="Attic")
    Device.objects.create(owner=alice, name="Scrapped", deleted_at=timezone.now())

    def shown(link):
        text = page(staff, "devices/device/", **({"link_status": link} if link else {}))
        return {name for name in ("Shop", "Attic", "Scrapped") if name in text}

    assert shown("") == {"Shop", "Attic"}
    assert shown("online") == {"Shop"}
    assert shown("offline") == {"Attic"}
    assert shown("unpaired") == {"Scrapped"}
    assert shown("all") == {"Shop", "Attic", "Scrapped"}


def test_the_device_page_shows_its_tunnel(staff, box, monkeypatch):
    Device.objects.update(local_address="127.0.0.1:8080", local_listening=False)
    fact = {"rtt_ms": 12.34, "bytes_in": 2048, "bytes_out": 4096, "streams": 7}
    monkeypatch.setattr(daemon_client, "session_fact", lambda url, session: fact)
    text = page(staff, f"devices/device/{box[0]['device_id']}/change/").replace("\xa0", " ")
    for part in (box[2], "12.3 ms", "2.0 KB from the box, 4.0 KB to it", "visiona-agent/0.1.0", "192.0.2.7"):
        assert part in text
    assert "Kick" in text
    assert "127.0.0.1:8080 (nothing listened there when the agent connected)" in text
    connected = registry.lookup([box[0]["device_id"]])[box[0]["device_id"]].connected_at
    assert datetime.fromisoformat(connected).strftime("%Y-%m-%d %H:%M:%S") in text
    assert datetime.fromisoformat(connected).isoformat(sep=" ") not in text  # no fractions, no offset


def test_the_device_page_opens_when_no_daemon_answers(staff, box):
    assert box[2] in page(staff, f"devices/device/{box[0]['device_id']}/change/")


def test_the_device_list_opens_when_redis_does_not_answer(staff, box, monkeypatch):
    def fail(devices):
        raise redis_package.ConnectionError

    monkeypatch.setattr(registry, "lookup", fail)
    assert ">unknown<" in "".join(page(staff, "devices/device/").split())


def test_kicking(staff, box, daemon):
    answer = staff.post(
        "/admin/devices/device/", {"action": "kick_selected", "_selected_action": [box[0]["device_id"]]}, follow=True
    )
    assert "1 tunnels closed." in answer.content.decode()
    assert daemon.beat(count=1)["close"] == [{"session": box[2], "code": 1012, "reason": "kicked"}]
    assert set(registry.lookup([box[0]["device_id"]])) == {box[0]["device_id"]}  # until its daemon says otherwise
    trail = AuditEvent.objects.get(action="device.kick")
    assert (trail.actor_label, trail.object_id) == ("staff@example.com", box[0]["device_id"])
    assert DeviceEvent.objects.filter(action="kicked").count() == 1


def test_the_button_that_kicks(staff, box):
    device = device_of(box[0])
    change = f"/admin/devices/device/{device.id}/change/"
    answer = staff.post(change, {"devices_device_kick_this": "1"}, follow=True)
    assert "tunnels closed." in answer.content.decode()
    assert "changed successfully" not in answer.content.decode()
    assert AuditEvent.objects.filter(action="device.kick", object_id=str(device.id)).count() == 1
    assert device_of(box[0]).epoch == device.epoch


FORM = re.compile(r'<input type="hidden" name="(action|confirmed|_selected_action)" value="([^"]*)">')


def ask(staff, path, data):
    """What the page that asks would send on, and where to."""
    answer = staff.post(path, data)
    text = answer.content.decode()
    assert answer.status_code == 200
    assert "Yes, do it" in text
    return dict(FORM.findall(text)), text


@pytest.mark.parametrize("way", ["button", "list"])
def test_unpairing_asks_first(staff, box, way):
    device = device_of(box[0])
    form, text = ask(
        staff,
        *{
            "button": (f"/admin/devices/device/{device.id}/change/", {"devices_device_unpair_this": "1"}),
            "list": ("/admin/devices/device/", {"action": "unpair_selected", "_selected_action": [str(device.id)]}),
        }[way],
    )
    assert "Shop" in text
    assert device_of(box[0]).deleted_at is None
    assert form == {"action": "unpair_selected", "confirmed": "yes", "_selected_action": str(device.id)}
    done = staff.post("/admin/devices/device/", form, follow=True).content.decode()
    assert "1 devices unpaired." in done
    assert "changed successfully" not in done
    assert device_of(box[0]).deleted_at is not None


@pytest.mark.parametrize("path,model", [("pairing/pairingtoken", PairingToken), ("pairing/sessiontoken", SessionToken)])
def test_revoking_asks_first_and_shows_no_hash(staff, box, daemon, path, model):
    token = model.objects.get()
    form, text = ask(staff, f"/admin/{path}/", {"action": "revoke", "_selected_action": [str(token.id)]})
    assert form["_selected_action"] == str(token.id)
    assert token.token_hash not in text
    assert daemon.ask(box[0]["session_token"])["ok"] is True


def test_saving_the_page_changes_nothing(staff, box):
    before = device_of(box[0])
    staff.post(f"/admin/devices/device/{before.id}/change/", {"name": "x", "_save": "1"})
    assert device_of(box[0]).updated_at == before.updated_at


def test_unpairing(staff, box, daemon):
    staff.post(
        "/admin/devices/device/",
        {"action": "unpair_selected", "confirmed": "yes", "_selected_action": [box[0]["device_id"]]},
    )
    assert device_of(box[0]).deleted_at is not None
    assert AuditEvent.objects.filter(action="device.unpair", actor_label="staff@example.com").count() == 1
    assert daemon.ask(box[0]["session_token"])["code"] == "TOKEN_REVOKED"


@pytest.mark.parametrize("path,model", [("pairing/pairingtoken", PairingToken), ("pairing/sessiontoken", SessionToken)])
def test_no_token_and_no_hash_is_shown(staff, box, path, model):
    token = model.objects.get()
    text = page(staff, f"{path}/")
    assert f'value="{token.id}"' in text
    for secret in (token.token_hash, box[1], box[0]["session_token"]):
        assert secret not in text
    for name in (token.id, token.token_hash):
        for view in ("change", "history", "delete"):
            assert staff.get(f"/admin/{path}/{name}/{view}/").status_code in (403, 404)


@pytest.mark.parametrize(
    "path,model,action",
    [
        ("pairing/pairingtoken", PairingToken, "pairing_token.revoke"),
        ("pairing/sessiontoken", SessionToken, "session_token.revoke"),
    ],
)
def test_revoking(staff, box, daemon, path, model, action, django_capture_on_commit_callbacks):
    token = model.objects.get()
    with django_capture_on_commit_callbacks(execute=True):
        staff.post(f"/admin/{path}/", {"action": "revoke", "confirmed": "yes", "_selected_action": [str(token.id)]})
    assert AuditEvent.objects.filter(action=action, actor_label="staff@example.com").count() == 1
    assert daemon.ask(box[0]["session_token"])["code"] == "TOKEN_REVOKED"
    assert registry.lookup([box[0]["device_id"]]) == {}


def test_a_checkbox_that_names_no_row(staff, box):
    for chosen in ("x", row(box[1]).token_hash):
        answer = staff.post("/admin/pairing/pairingtoken/", {"action": "revoke", "_selected_action": [chosen]})
        assert answer.status_code == 403
    assert row(box[1]).status == PairingStatus.CONSUMED


def test_twins_and_clones_are_found(staff, box, alice):
    other = Device.objects.create(owner=alice, name="Hall", claimed_serial="S-1", twin_at=timezone.now())
    Device.objects.filter(id=box[0]["device_id"]).update(cloned_at=timezone.now())
    listed = page(staff, "devices/device/")
    assert "S-1 · possible twin" in listed
    assert "S-1 · cloned" in listed
    assert "Hall" in page(staff, "devices/device/", twins="twin")
    assert "Shop" not in page(staff, "devices/device/", twins="twin")
    assert "Shop" in page(staff, "devices/device/", twins="cloned")
    assert "S-1" in page(staff, f"devices/device/{other.pk}/change/")
    chosen = {"action": "dismiss_selected", "_selected_action": [str(other.pk)]}
    assert staff.post("/admin/devices/device/", chosen).status_code == 302
    other.refresh_from_db()
    assert not other.possible_twin
    assert AuditEvent.objects.filter(action="device.twin_dismissed", object_id=str(other.pk)).exists()


def test_the_list_of_devices_says_the_most_in_few_columns(staff, box):
    shown = page(staff, "devices/device/")
    for text in ("Shop", "S-1", "KL720", timezone.now().strftime("%Y-%m-%d")):
        assert text in shown
    assert shown.count("column-") <= 2 * 7 + 3  # more of them scroll sideways on a laptop
