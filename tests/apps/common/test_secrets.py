"""Secrets in comma lists: the first signs, all verify (docs/operations.md, "Secrets")."""

import hmac

import pytest
from django.core import signing
from django.test import Client

from apps.storage import signing as storage
from apps.webhooks import signing as webhooks
from tunnel.contract import verify_secret

SECRETS = ("the-first", "the-second")
GRANT = storage.Grant("GET", "models/aa/x", 1, 1_000)


def storage_passes() -> bool:
    try:
        storage.verify(storage.sign(GRANT, SECRETS), SECRETS, method="GET", now=0)
    except storage.Forged:
        return False
    return True


@pytest.mark.parametrize(
    ("passes", "compared"),
    [
        (lambda: verify_secret("the-first", SECRETS), 2),
        (storage_passes, 2),
        (lambda: webhooks.verify(webhooks.sign(SECRETS, b"x", 0), SECRETS, b"x", 0), 4),  # it is signed by both
    ],
)
def test_what_is_secret_is_compared_in_constant_time_alone(monkeypatch, passes, compared):
    """What `hmac.compare_digest` denies is refused, and after a match the rest is compared too."""
    plain, seen = hmac.compare_digest, []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append(1) or plain(a, b))
    assert passes()
    assert len(seen) == compared
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: False)
    assert not passes()


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
