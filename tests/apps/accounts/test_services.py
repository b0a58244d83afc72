"""What no route shows alone: disabling while Redis is away, two that revoke one session."""

import pytest
import redis.exceptions
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts import demo, services, sessions
from apps.accounts.models import User
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tests.apps.conftest import login_as


def test_disabling_stands_while_redis_is_away(alice, monkeypatch, django_capture_on_commit_callbacks):
    def away(*_args: object) -> int:
        raise redis.exceptions.ConnectionError

    monkeypatch.setattr(sessions, "end_all", away)
    api = login_as(alice)
    with django_capture_on_commit_callbacks(execute=True):
        assert services.set_active(actor=Actor.system(), user_id=alice.pk, active=False, now=timezone.now())
    assert not User.objects.get(pk=alice.pk).is_active
    assert api("GET", "/api/auth/me").status == 401


def test_of_two_that_revoke_one_session_one_is_told_so(alice):
    login_as(alice)
    (session,) = sessions.list_of(alice.pk, now=timezone.now())
    services.revoke_session(actor=Actor.system(), user=alice, session=session, now=timezone.now())
    with pytest.raises(DomainError, match="NOT_FOUND"):
        services.revoke_session(actor=Actor.system(), user=alice, session=session, now=timezone.now())


def test_the_demo_user_is_made_once(db):
    first = demo.ensure_demo_user(staff=True)
    again = demo.ensure_demo_user(password="another")
    assert first == again
    assert again.check_password(demo.DEMO_PASSWORD)
    assert (first.email, first.is_superuser) == ("demo@visionA.local", True)


def test_each_end_of_a_login_is_told_to_the_daemons(alice):
    from_now = timezone.now()
    for _ in range(3):
        login_as(alice)
    one, two, _three = sessions.list_of(alice.pk, now=from_now)
    services.logout(actor=Actor.system(), user=alice, session=one, now=from_now)
    services.revoke_session(actor=Actor.system(), user=alice, session=two, now=from_now)
    services.logout_all(actor=Actor.system(), user=alice, now=from_now)
    jobs = ProcrastinateJob.objects.filter(task_name="tunnels.invalidate").order_by("id")
    assert [(job.args["users"], job.args["logins"]) for job in jobs] == [
        ([], [one.token_hash]),
        ([], [two.token_hash]),
        ([str(alice.pk)], []),
    ]
    assert sessions.list_of(alice.pk, now=from_now) == []
