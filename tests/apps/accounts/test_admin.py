"""The admin for users: add, find, disable, reset, end; no secret is shown, and rights are a superuser's to give."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.test import Client
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from tests.apps.accounts.mail_kit import deliver, token_in
from tests.apps.conftest import PASSWORD

LIST = "/admin/accounts/user/"


@pytest.fixture
def staff(make_user) -> Client:
    client = Client()
    client.force_login(make_user("root@example.com", is_staff=True, is_superuser=True))
    return client


def act(client: Client, action: str, *users: User) -> None:
    answer = client.post(
        LIST, {"action": action, "confirmed": "yes", "_selected_action": [str(user.pk) for user in users]}
    )
    assert answer.status_code == 302


def test_staff_log_in_with_their_password_and_others_do_not(make_user, alice):
    make_user("root@example.com", is_staff=True, is_superuser=True)
    client = Client()
    assert client.get(LIST).status_code == 302
    assert client.post("/admin/login/", {"username": alice.email, "password": PASSWORD}).status_code == 200
    assert client.post("/admin/login/", {"username": "ROOT@example.com", "password": PASSWORD}).status_code == 302
    page = client.get("/admin/")
    assert page.status_code == 200
    assert b"VisionA Cloud" in page.content
    # Alice's password was right, so her login is on record; that she is no staff the form says afterwards.
    logins = AuditEvent.objects.filter(action="admin.login").order_by("id")
    assert [row.actor_label for row in logins] == [alice.email, "root@example.com"]


@pytest.mark.parametrize("email", ["root@example.com", "nobody@example.com"])
def test_a_failed_login_is_audited(make_user, email):
    make_user("root@example.com", is_staff=True, is_superuser=True)
    assert Client().post("/admin/login/", {"username": email, "password": "wrong"}).status_code == 200
    assert AuditEvent.objects.get(action="admin.login_failed").detail == {"email": email}


def test_a_form_without_its_csrf_token_is_refused_by_django(make_user):
    client = Client(enforce_csrf_checks=True)
    answer = client.post("/admin/login/", {"username": "x", "password": "y"})
    assert answer.status_code == 403
    assert answer.headers["Content-Type"].startswith("text/html")


def test_an_unknown_page_of_the_admin_is_a_page(staff):
    answer = staff.get("/admin/nope/")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("query", ["", "?q=alice", "?is_active__exact=1", "?q=%25"])
def test_users_can_be_listed_and_found(staff, alice, query):
    page = staff.get(LIST + query)
    assert page.status_code == 200
    assert (alice.email.encode() in page.content) is (query != "?q=%25")


def test_no_page_shows_a_hash(staff, alice):
    for path in (LIST, f"{LIST}{alice.pk}/change/"):
        page = staff.get(path)
        assert page.status_code == 200
        assert b"argon2" not in page.content


def test_disabling_ends_logins_at_once_and_defers_the_end_of_tunnels(
    staff, alice, alice_api, bob_api, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        act(staff, "disable", alice)
    assert alice_api("GET", "/api/auth/me").status == 401
    assert bob_api("GET", "/api/auth/me").status == 200
    job = ProcrastinateJob.objects.get(task_name="tunnels.close_user")
    assert job.args["user_id"] == str(alice.pk)
    row = AuditEvent.objects.get(action="user.disabled")
    assert (row.actor_label, row.object_id) == ("root@example.com", str(alice.pk))

    act(staff, "enable", alice)
    alice.refresh_from_db()
    assert alice.is_active
    assert alice_api("GET", "/api/auth/me").status == 401  # the old logins are gone for good
    assert AuditEvent.objects.filter(action="user.enabled").count() == 1


def test_disabling_twice_is_one_act(staff, alice):
    act(staff, "disable", alice)
    act(staff, "disable", alice)
    assert AuditEvent.objects.filter(action="user.disabled").count() == 1
    assert ProcrastinateJob.objects.filter(task_name="tunnels.close_user").count() == 1


def test_nobody_disables_themselves(staff):
    root = User.objects.get(email="root@example.com")
    act(staff, "disable", root)
    root.refresh_from_db()
    assert root.is_active


def test_a_change_by_staff_is_audited(staff, alice):
    answer = staff.post(f"{LIST}{alice.pk}/change/", {"name": "Alicia", "locale": "", "is_staff": "on"})
    assert answer.status_code == 302
    alice.refresh_from_db()
    assert (alice.name, alice.is_staff, alice.is_superuser) == ("Alicia", True, False)
    assert AuditEvent.objects.get(action="user.changed_by_staff").detail == {"fields": ["is_staff", "name"]}


def test_staff_who_are_no_superuser_give_no_rights(make_user, alice):
    clerk = make_user("clerk@example.com", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(content_type__app_label="accounts"))
    client = Client()
    client.force_login(clerk)
    client.post(f"{LIST}{alice.pk}/change/", {"name": "A", "locale": "", "is_staff": "on", "is_superuser": "on"})
    alice.refresh_from_db()
    assert (alice.name, alice.is_staff, alice.is_superuser) == ("A", False, False)


def test_staff_without_permissions_see_nothing(make_user):
    client = Client()
    client.force_login(make_user("clerk@example.com", is_staff=True))
    assert client.get(LIST).status_code == 403
    assert client.get("/admin/").status_code == 200


class TestAdding:
    FORM = {"email": "Nia@example.com", "name": "Nia", "locale": "zh-TW"}  # noqa: RUF012 - read alone

    def add(self, staff: Client, **more: str) -> Any:
        return staff.post(f"{LIST}add/", {**self.FORM, **more})

    def test_who_is_added_sets_a_password_by_the_link(self, staff, anonymous):
        assert staff.get(f"{LIST}add/").status_code == 200
        assert self.add(staff, is_staff="on").status_code == 302
        user = User.objects.get(email="Nia@example.com")
        assert (user.name, user.is_staff, user.is_superuser, user.has_usable_password()) == ("Nia", True, False, False)
        row = AuditEvent.objects.get(action="user.added_by_staff")
        assert (row.object_id, row.actor_label) == (str(user.pk), "root@example.com")
        (letter,) = deliver()
        assert letter.to == ["Nia@example.com"]
        body = {"token": token_in(letter), "password": PASSWORD}
        assert anonymous("POST", "/api/auth/password/reset/confirm", body).status == 200
        assert anonymous("POST", "/api/auth/login", {"email": user.email, "password": PASSWORD}).status == 200

    @pytest.mark.parametrize("more", [{"email": "ALICE@example.com"}, {"email": "no"}, {"email": ""}])
    def test_a_bad_or_taken_e_mail_is_told_in_the_form(self, staff, alice, more):
        page = self.add(staff, **more)
        assert page.status_code == 200
        assert User.objects.count() == 2

    def test_a_clerk_adds_no_staff(self, make_user):
        clerk = make_user("clerk@example.com", is_staff=True)
        clerk.user_permissions.set(Permission.objects.filter(content_type__app_label="accounts"))
        client = Client()
        client.force_login(clerk)
        self.add(client, is_staff="on")
        assert not User.objects.get(email="Nia@example.com").is_staff

    def test_not_without_the_permission(self, make_user):
        client = Client()
        client.force_login(make_user("clerk@example.com", is_staff=True))
        assert self.add(client).status_code == 403


def test_a_link_for_a_new_password(staff, alice):
    act(staff, "send_reset", alice)
    (letter,) = deliver()
    assert (letter.to, letter.subject) == ([alice.email], "Set a new password for VisionA Cloud")
    assert AuditEvent.objects.get(action="user.reset_sent_by_staff").object_id == str(alice.pk)


def test_an_account_is_ended_by_a_superuser_alone(staff, alice, make_user):
    clerk = make_user("clerk@example.com", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(content_type__app_label="accounts"))
    client = Client()
    client.force_login(clerk)
    asked = {"action": "end_account", "_selected_action": [str(alice.pk)]}
    client.post(LIST, {**asked, "confirmed": "yes"})
    assert User.objects.filter(pk=alice.pk, is_active=True).exists()
    assert "There is no way back." in staff.post(LIST, asked).content.decode()
    assert not AuditEvent.objects.filter(action="user.deleted").exists()
    act(staff, "end_account", alice, User.objects.get(email="root@example.com"))
    row = AuditEvent.objects.get(action="user.deleted")
    assert (row.actor_label, row.object_id) == ("root@example.com", str(alice.pk))
    assert User.objects.get(email="root@example.com").is_active


def test_the_command_makes_a_superuser(db, monkeypatch):
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)
    call_command("createsuperuser", interactive=False, email="Op@example.com", verbosity=0)
    user = User.objects.get()
    assert (user.email, user.is_staff, user.is_superuser, user.check_password(PASSWORD)) == (
        "Op@example.com", True, True, True,
    )  # fmt: skip
    assert Client().post("/admin/login/", {"username": "op@EXAMPLE.com", "password": PASSWORD}).status_code == 302
