"""Secrets in comma lists: the first signs, all verify (docs/operations.md, "Secrets")."""

import pytest
from django.core import signing
from django.test import Client


def test_what_the_old_secret_key_signed_is_good_while_it_is_in_the_list(make_user, settings):
    """The admin's login, and anything else that is signed, goes on through a rotation; then no more."""
    client = Client()
    client.force_login(make_user("root@example.com", is_staff=True, is_superuser=True))
    signed = signing.dumps({"a": 1}, salt="test")
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "a-new-key-" * 5, [old]
    assert client.get("/admin/").status_code == 200
    assert signing.loads(signed, salt="test") == {"a": 1}
    settings.SECRET_KEY_FALLBACKS = []
    with pytest.raises(signing.BadSignature):
        signing.loads(signed, salt="test")
