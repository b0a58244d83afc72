"""The same person seen for the first time by many calls at once, and two persons of one e-mail."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from django.db import connections
from django.utils import timezone

from apps.accounts.models import User
from apps.accounts.oidc.claims import Identity
from apps.accounts.oidc.linking import user_of
from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.common.errors import DomainError

pytestmark = pytest.mark.django_db(transaction=True)
PAT = Identity("https://id.example", "1", "pat@example.com", True, "Pat", "", 0.0, 1.0)


def at_once(identities: list[Identity]) -> list[str]:
    """Whose account each got, or the code of the refusal."""

    def see(identity: Identity) -> str:
        try:
            return str(user_of(identity, actor=Actor.system(), now=timezone.now()).pk)
        except DomainError as error:
            return error.code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(identities)) as pool:
        return list(pool.map(see, identities))


def test_one_person_is_one_user():
    assert at_once([PAT] * 8) == [str(User.objects.get().pk)] * 8
    assert AuditEvent.objects.filter(action="user.register").count() == 1


def test_of_two_persons_with_one_e_mail_one_has_it():
    told = at_once([PAT, replace(PAT, subject="2")])
    assert sorted(told)[1] == "EMAIL_TAKEN"
    assert User.objects.count() == 1


def test_a_verified_account_is_linked_once(make_user):
    user = make_user(PAT.email, email_verified_at=timezone.now())
    other = replace(PAT, subject="2")
    told = at_once([PAT, PAT, PAT, other, other, other])
    assert sorted(told) == sorted([str(user.pk)] * 3 + ["EMAIL_TAKEN"] * 3)
    assert len(set(told[:3])) == len(set(told[3:])) == 1  # all of one person's calls see the same
    assert AuditEvent.objects.filter(action="user.oidc_linked").count() == 1
