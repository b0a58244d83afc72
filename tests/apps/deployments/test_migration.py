"""Deployments became an app of their own: nothing that stands in the database is lost, in either direction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from procrastinate.contrib.django import app as jobs

from apps.accounts.models import User
from apps.deployments.models import Deployment
from apps.devices.models import Device
from tests.apps.model_registry.kit import ready


def types() -> dict[str, int]:
    """The content types of deployments: their ids by app label."""
    return dict(ContentType.objects.filter(model="deployment").values_list("app_label", "id"))


def may_view(email: str, app: str) -> bool:
    return User.objects.get(email=email).has_perm(f"{app}.view_deployment")


def back() -> None:
    call_command("migrate", "model_registry", "0004", verbosity=0)


def forward() -> None:
    call_command("migrate", verbosity=0)


@pytest.fixture
def before(transactional_db: None) -> Iterator[None]:
    """The schema of the release before, and this one's again afterwards."""
    back()
    yield
    forward()


@pytest.fixture
def staff(before: None) -> int:
    """Two who may see deployments, one of them by a group, and a line in the admin's log; the content type's id."""
    old = ContentType.objects.get(app_label="model_registry", model="deployment")
    view = Permission.objects.get(content_type=old, codename="view_deployment")
    ann = User.objects.create_user("ann@example.com", "correct horse battery", is_staff=True)
    ann.user_permissions.add(view)
    group = Group.objects.create(name="operators")
    group.permissions.add(view)
    ben = User.objects.create_user("ben@example.com", "correct horse battery", is_staff=True)
    ben.groups.add(group)
    LogEntry.objects.create(user=ann, content_type=old, object_id="1", object_repr="one", action_flag=CHANGE)
    return int(old.pk)


def test_rows_permissions_and_the_log_go_on(staff: int, local: None) -> None:
    owner = User.objects.get(email="ann@example.com")
    model, device = ready(owner.pk), Device.objects.create(owner=owner, name="box")
    made = Deployment.objects.create(owner=owner, model=model, device=device, bytes_total=1, moved_at=timezone.now())
    forward()
    assert Deployment.objects.get().pk == made.pk
    assert types()["deployments"] == staff
    for email in ("ann@example.com", "ben@example.com"):
        assert may_view(email, "deployments")
        assert may_view(email, "model_registry"), "the release before asks for this"
    assert LogEntry.objects.get().content_type_id == staff
    back()
    assert Deployment.objects.get().pk == made.pk
    assert types() == {"model_registry": staff}
    for email in ("ann@example.com", "ben@example.com"):
        assert may_view(email, "model_registry")
    assert LogEntry.objects.get().content_type_id == staff


def test_what_was_revoked_meanwhile_stays_revoked(staff: int) -> None:
    forward()
    User.objects.get(email="ann@example.com").user_permissions.clear()
    ContentType.objects.get(app_label="deployments", model="deployment").permission_set.get(
        codename="view_deployment"
    ).group_set.clear()
    back()
    assert not may_view("ann@example.com", "model_registry")
    assert not may_view("ben@example.com", "model_registry")


def test_a_content_type_that_is_there_already_gives_way(staff: int) -> None:
    """A process of this release that migrated made it again after the way back."""
    again = ContentType.objects.create(app_label="deployments", model="deployment")
    Permission.objects.create(content_type=again, codename="view_deployment", name="x")
    LogEntry.objects.update(content_type=again)
    forward()
    assert types()["deployments"] == staff
    assert may_view("ann@example.com", "deployments")
    assert LogEntry.objects.get().content_type_id == staff


def test_an_empty_database_has_nothing_of_the_release_before(before: None) -> None:
    ContentType.objects.filter(model="deployment").delete()
    forward()
    assert set(types()) == {"deployments"}


@pytest.mark.parametrize(
    ("known", "queued"),
    [
        ("deployments.deploy", "model_registry.deploy"),
        ("deployments.rescue", "model_registry.rescue_deployments"),
    ],
)
def test_jobs_have_the_names_that_workers_of_the_release_before_know(known: str, queued: str) -> None:
    """And ours know those that the next release may queue."""
    assert jobs.tasks[queued].name == queued
    assert jobs.tasks[known] is jobs.tasks[queued]


@pytest.mark.parametrize("rest", ["", "?status=queued", "0198c0de/change/?status=queued"])
def test_the_admins_old_addresses_lead_to_the_new_ones(db: None, rest: str) -> None:
    answer = Client().get(f"/admin/model_registry/deployment/{rest}")
    assert (answer.status_code, answer["Location"]) == (302, f"/admin/deployments/deployment/{rest}")
