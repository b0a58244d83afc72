"""JWTs of a real OpenID provider in the place of a login token: on the API, with tickets, on the fast lane."""

import base64
import datetime as dt
import hmac
import json

import pytest
from django.conf import settings
from django.utils import timezone
from joserfc import jwk, jwt

from apps.accounts import services
from apps.accounts.models import User
from apps.accounts.oidc import bearer
from apps.accounts.oidc import provider as ours
from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tests.apps.conftest import Api
from tests.apps.internal.kit import Daemon, online_device, settle

pytestmark = pytest.mark.django_db
ME = "/api/auth/me"


@pytest.fixture(scope="module")
def token(running_provider) -> str:
    running_provider.start()
    return running_provider.token_of(running_provider.pat)


@pytest.fixture
def pat(provider, token) -> Api:
    return Api(token)


def claims_of(token: str) -> dict[str, object]:
    body = token.split(".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def refused(token: str) -> str:
    answer = Api(token)("GET", ME)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="visiona"'
    return answer.code


class TestFirstSight:
    def test_makes_the_user_once(self, provider, pat, django_assert_num_queries):
        first = pat("GET", ME)
        assert first.status == 200
        assert (first.data["email"], first.data["email_verified"], first.data["name"]) == (provider.pat, True, "Pat")
        with django_assert_num_queries(2):  # who it is, and what `/me` says of their shares
            assert pat("GET", ME).data == first.data
        row = AuditEvent.objects.get(action="user.register")
        assert (row.actor_label, row.address, row.detail) == (provider.pat, "127.0.0.1", {"issuer": provider.issuer})

    def test_links_a_verified_account(self, provider, pat, make_user):
        user = make_user(provider.pat, email_verified_at=timezone.now())
        assert pat("GET", ME).data["id"] == str(user.pk)

    def test_does_not_take_over_an_unverified_one(self, provider, pat, make_user):
        make_user(provider.pat)
        answer = pat("GET", ME)
        assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")
        assert "linked" in answer.error["message"]

    def test_makes_nobody_where_registration_is_closed(self, pat, monkeypatch):
        monkeypatch.setitem(settings.VISIONA, "REGISTRATION", "closed")
        assert pat("GET", ME).code == "UNAUTHENTICATED"
        assert not User.objects.exists()

    def test_without_an_e_mail_there_is_a_placeholder(self, provider, pat, monkeypatch):
        monkeypatch.setitem(settings.VISIONA, "OIDC_EMAIL_CLAIM", "https://other.example/email")
        data = pat("GET", ME).data
        assert data["email"].endswith("@oidc.invalid")
        assert data["email_verified"] is False
        assert pat("GET", ME).data["id"] == data["id"]


class TestRefused:
    def test_without_a_provider(self, token):
        assert refused(token) == "UNAUTHENTICATED"

    def test_expired_with_a_minute_of_leeway(self, provider, token):
        ends = dt.datetime.fromtimestamp(claims_of(token)["exp"], dt.UTC)
        actor = Actor("", "", "192.0.2.1", "req_1")
        assert bearer.login(token, actor=actor, now=ends + dt.timedelta(seconds=58))
        with pytest.raises(DomainError, match="TOKEN_EXPIRED"):
            bearer.login(token, actor=actor, now=ends + dt.timedelta(seconds=61))

    def test_from_the_future(self, provider, token):
        issued = dt.datetime.fromtimestamp(claims_of(token)["iat"], dt.UTC)
        with pytest.raises(DomainError, match="UNAUTHENTICATED"):
            bearer.login(token, actor=Actor.system(), now=issued - dt.timedelta(seconds=120))

    @pytest.mark.parametrize(
        ("audience", "parties", "good"),
        [
            ((), (), True),  # our client id is the audience
            (("visiona",), (), True),
            (("another", "visiona"), (), True),
            (("another",), (), False),
            ((), ("visiona",), True),
            ((), ("http://localhost:3000",), False),
            (("visiona",), ("visiona",), True),
            (("visiona",), ("another",), False),
            (("another",), ("visiona",), False),
        ],
    )
    def test_for_whom_it_is(self, provider, pat, monkeypatch, audience, parties, good):
        monkeypatch.setitem(settings.VISIONA, "OIDC_AUDIENCE", audience)
        monkeypatch.setitem(settings.VISIONA, "OIDC_AUTHORIZED_PARTIES", parties)
        assert pat("GET", ME).status == (200 if good else 401)

    def test_an_algorithm_that_is_not_on_the_list(self, pat, monkeypatch):
        monkeypatch.setitem(settings.VISIONA, "OIDC_ALGORITHMS", ("ES256",))
        assert pat("GET", ME).code == "UNAUTHENTICATED"

    def test_altered(self, provider, token):
        head, body, signature = token.split(".")
        claims = claims_of(token) | {"sub": "1", "email": "root@example.com"}
        other = _text(json.dumps(claims).encode())
        assert refused(f"{head}.{other}.{signature}") == "UNAUTHENTICATED"
        assert refused(f"{head}.{body}.{signature[:-4]}AAAA") == "UNAUTHENTICATED"

    def test_unsigned(self, provider, token):
        head = _text(b'{"alg":"none","typ":"JWT"}')
        assert refused(f"{head}.{token.split('.')[1]}.AAAA") == "UNAUTHENTICATED"

    def test_signed_with_the_public_key_as_a_secret(self, provider, token):
        """RFC 8725 §2.1: an RS256 key, which everybody has, must not verify an HS256 token."""
        key = ours._provider(provider.issuer, 20.0).known().keys[0]
        head = _text(json.dumps({"alg": "HS256", "kid": key.kid}).encode())
        signed = f"{head}.{token.split('.')[1]}"
        for secret in (key.as_pem(private=False), key.as_der(private=False)):  # by hand: no library would
            mac = hmac.new(secret, signed.encode(), "sha256").digest()
            assert refused(f"{signed}.{_text(mac)}") == "UNAUTHENTICATED"

    def test_signed_by_a_key_of_its_own_that_it_brings_along(self, provider, token):
        known = ours._provider(provider.issuer, 20.0).known().keys[0]
        key = jwk.RSAKey.generate_key(2048)
        head = {"alg": "RS256", "kid": known.kid, "jwk": key.as_dict(private=False), "jku": "http://127.0.0.1:1/keys"}
        assert refused(jwt.encode(head, dict(claims_of(token)), key)) == "UNAUTHENTICATED"

    @pytest.mark.parametrize(
        "text", ["a.b.c", "..", "eyJ.eyJ.x", "vAu_" + "0" * 32 + ".a.b", "vAc_" + "0" * 32, "a.b.c.d.e", "x" * 20_000]
    )
    def test_what_is_no_jwt(self, provider, text):
        assert refused(text) == "UNAUTHENTICATED"

    def test_a_disabled_user_at_once_and_everywhere(self, provider, pat, online, ask, token):
        user = User.objects.get(pk=pat("GET", ME).data["id"])
        device = online(user)
        granted = ask(token=token, device=str(device.pk)).data
        ticket = pat("POST", "/api/ws/ticket", {"device_id": str(device.pk)}).data["ticket"]
        services.set_active(actor=Actor.system(), user_id=user.pk, active=False, now=timezone.now())
        assert refused(token) == "UNAUTHENTICATED"
        for again in (
            {"token": token},
            {"kind": "login", "token": granted["login"]},
            {"kind": "ticket", "token": ticket, "origin": "http://localhost:3000"},
        ):
            assert ask(device=str(device.pk), **again).data["code"] == "UNAUTHENTICATED"


class TestEnding:
    def test_logging_out_ends_this_token_here(self, provider, pat, token):
        assert pat("POST", "/api/auth/logout").status == 200
        assert refused(token) == "TOKEN_REVOKED"

    def test_logging_out_everywhere_ends_all_that_were_issued(self, provider, pat, token):
        assert pat("POST", "/api/auth/logout-all").status == 200
        assert refused(token) == "TOKEN_REVOKED"

    def test_the_own_sessions_are_logins_of_ours(self, pat):
        answer = pat("GET", "/api/auth/sessions")
        assert (answer.status, answer.data) == (200, [])


# --- tickets and the fast lane ----------------------------------------------------------------------------------------
@pytest.fixture
def daemon(db) -> Daemon:
    node = Daemon()
    node.beat()
    settle()
    return node


@pytest.fixture
def online(daemon):
    """Makes an online device of an owner."""
    return online_device


@pytest.fixture
def ask(daemon):
    return daemon.authorize


class TestFastLane:
    def test_a_jwt_is_allowed_and_asked_for_again_by_its_name(self, provider, pat, online, ask, token):
        user = User.objects.get(pk=pat("GET", ME).data["id"])
        device = online(user)
        granted = ask(token=token, device=str(device.pk)).data
        assert (granted["allowed"], granted["user_id"], granted["device_id"]) == (True, str(user.pk), str(device.pk))
        assert len(granted["login"]) == 64
        assert token not in str(granted)
        assert ask(token=token).data["allowed"]  # the only one online
        assert ask(kind="login", token=granted["login"], device=str(device.pk)).data["allowed"]
        pat("POST", "/api/auth/logout")
        assert ask(kind="login", token=granted["login"], device=str(device.pk)).data["code"] == "UNAUTHENTICATED"
        assert ask(token=token, device=str(device.pk)).data["code"] == "TOKEN_REVOKED"

    def test_first_sight_may_be_here(self, provider, ask, token):
        assert ask(token=token).data["code"] == "TUNNEL_DISCONNECTED"
        assert AuditEvent.objects.get(action="user.register").address == "192.0.2.9"

    def test_a_ticket_made_by_a_jwt(self, provider, pat, online, ask):
        device = online(User.objects.get(pk=pat("GET", ME).data["id"]))
        text = pat("POST", "/api/ws/ticket", {"device_id": str(device.pk)}).data["ticket"]
        asked = {"kind": "ticket", "token": text, "device": str(device.pk), "origin": "http://localhost:3000"}
        assert ask(**asked).data["allowed"]
        assert ask(**asked).data["code"] == "UNAUTHENTICATED"  # spent

    def test_a_ticket_dies_with_its_jwt(self, provider, pat, online, ask):
        device = online(User.objects.get(pk=pat("GET", ME).data["id"]))
        text = pat("POST", "/api/ws/ticket", {"device_id": str(device.pk)}).data["ticket"]
        pat("POST", "/api/auth/logout")
        asked = {"kind": "ticket", "token": text, "device": str(device.pk), "origin": "http://localhost:3000"}
        assert ask(**asked).data["code"] == "UNAUTHENTICATED"


# --- keys -------------------------------------------------------------------------------------------------------------
def test_the_provider_changes_its_keys_and_goes_away(provider, pat, token, monkeypatch):
    """A new key is fetched when its first token comes; the old one is still published, so older tokens go on. While the
    provider is away what is known goes on, and a process that knows nothing says 503.
    """
    assert pat("GET", ME).status == 200
    provider.stop()
    assert pat("GET", ME).status == 200
    provider.new_key()
    provider.start()
    newer = provider.token_of(provider.pat)
    ours._provider(provider.issuer, 20.0)._tried_at = float("-inf")  # as if half a minute had passed
    assert Api(newer)("GET", ME).data == pat("GET", ME).data
    assert len(ours._provider(provider.issuer, 20.0).known().keys) >= 2
    provider.stop()
    assert Api(newer)("GET", ME).status == 200
    ours._provider.cache_clear()  # another process
    answer = pat("GET", ME)
    assert (answer.status, answer.code) == (503, "OVERLOADED")
    assert int(answer.headers["Retry-After"]) >= 1
