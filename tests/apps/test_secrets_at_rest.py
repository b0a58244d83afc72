"""Where no secret may lie: every table, all of Redis and the log are searched for each that was just given out.

data.md: tokens "are stored as SHA-256 of a random secret and nowhere else"; quality.md: "secrets never in logs".
"""

import io
import logging
from urllib.parse import quote, urlsplit

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from psycopg.sql import SQL, Identifier
from structlog.stdlib import ProcessorFormatter

from apps.accounts.factors import totp
from apps.common import redis
from apps.common.observability import log_line
from apps.pairing.services import hash_token
from tests.apps.accounts.mail_kit import deliver, token_in
from tests.apps.conftest import PASSWORD, Api
from tests.apps.internal.kit import Daemon, named

NEW_PASSWORD = "battery staple of a horse"


def tables() -> str:
    """All rows of all tables, as text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        names = [name for (name,) in cursor.fetchall()]
        rows = []
        for name in names:
            cursor.execute(SQL("SELECT t::text FROM {} t").format(Identifier(name)))
            rows += [row for (row,) in cursor.fetchall()]
    return "\n".join(rows)


def memory() -> str:
    """All keys and values of Redis, as text."""
    read = {
        "string": lambda key: redis.client().get(key),
        "hash": lambda key: redis.client().hgetall(key),
        "set": lambda key: redis.client().smembers(key),
        "zset": lambda key: redis.client().zrange(key, 0, -1),
        "list": lambda key: redis.client().lrange(key, 0, -1),
    }
    return "\n".join(f"{key} {read[redis.client().type(key)](key)}" for key in redis.client().scan_iter("*"))


def give_out(settings) -> dict[str, str]:
    """Every kind of secret that somebody has from us, each used once as it is meant to be."""
    stranger = Api()
    account = {"email": "ada@example.com", "password": PASSWORD}
    assert stranger("POST", "/api/auth/register", account).status == 201
    ada = Api(stranger("POST", "/api/auth/login", account).data["access_token"])
    given = {"password": PASSWORD, "login token": ada.token}
    (letter,) = deliver()
    given["token to confirm"] = token_in(letter)
    assert stranger("POST", "/api/auth/email/verify", {"token": given["token to confirm"]}).status == 200
    given["pairing token"] = ada("POST", "/api/pairing/token", {"name": "hall"}).data["token"]
    daemon = Daemon()
    daemon.beat()
    admitted = daemon.ask_all(named(given["pairing token"]))[0]
    given["session token"] = admitted["session_token"]
    device = admitted["device_id"]
    given["ticket"] = ada("POST", "/api/ws/ticket", {"device_id": device}).data["ticket"]
    assert daemon.authorize(kind="ticket", token=given["ticket"], device=device, method="GET").status == 200
    given["second ticket"] = ada("POST", "/api/ws/ticket", {"device_id": device}).data["ticket"]
    hook = ada("POST", "/api/webhooks", {"url": "https://example.com/?key=of-theirs", "events": ["device.online"]})
    given["webhook's secret"] = hook.data["secret"]
    given["webhook's next secret"] = ada("POST", f"/api/webhooks/{hook.data['id']}/secret").data["secret"]
    begun = ada("POST", "/api/models/init", {"name": "m", "version": "1", "filename": "f", "size": 1, "chips": []}).data
    given["signed URL"] = urlsplit(begun["upload"]["url"]).path.removeprefix("/storage/")
    assert stranger("PUT", urlsplit(begun["upload"]["url"]).path, b"x").status == 201
    assert stranger("POST", "/api/auth/password/reset", {"email": "ada@example.com"}).status == 200
    (letter,) = deliver()
    given["token to reset"] = token_in(letter)
    body = {"token": given["token to reset"], "password": NEW_PASSWORD}
    assert stranger("POST", "/api/auth/password/reset/confirm", body).status == 200
    given["new password"] = NEW_PASSWORD
    ada = Api(stranger("POST", "/api/auth/login", {**account, "password": NEW_PASSWORD}).data["access_token"])
    offer = ada("POST", "/api/auth/second-factor", {"password": NEW_PASSWORD}).data
    given["authenticator's secret"] = offer["secret"]
    code = totp.code_of(offer["secret"], seconds=timezone.now().timestamp())
    codes = ada("POST", "/api/auth/second-factor/confirm", {"code": code}).data["recovery_codes"]
    given["recovery code"], given["spent recovery code"] = codes[:2]
    login = {**account, "password": NEW_PASSWORD, "code": codes[1]}
    assert stranger("POST", "/api/auth/login", login).status == 200
    for number, secret in enumerate(settings.VISIONA["INTERNAL_SECRET"]):
        given[f"internal secret {number}"] = secret
    return given


def misuse(given: dict[str, str]) -> None:
    """In the wrong place each: what goes wrong is told in more words than what goes well."""
    stranger, admin = Api(), Client()
    for secret in given.values():
        stranger("POST", "/api/auth/login", {"email": secret, "password": secret})
        stranger("POST", "/api/auth/login", {"email": "ada@example.com", "password": NEW_PASSWORD, "code": secret[:64]})
        admin.post("/admin/login/", {"username": secret, "password": secret})
        stranger("POST", "/api/auth/email/verify", {"token": secret})
        stranger("GET", f"/api/auth/me?token={quote(secret)}")
        stranger("GET", f"/storage/{quote(secret)}")
        Api(secret)("GET", "/api/auth/me")
        Api(secret)("POST", "/internal/tunnel/heartbeat", {"token": secret})
        if secret.startswith("vA"):
            stranger("GET", f"/api/devices/{secret}")


@pytest.fixture
def log(monkeypatch):
    """All that would stand on stderr, at the level that says the most."""
    root, told = logging.getLogger(), io.StringIO()
    (formatter,) = [each.formatter for each in root.handlers if isinstance(each.formatter, ProcessorFormatter)]
    handler = logging.StreamHandler(told)
    handler.setFormatter(formatter)
    monkeypatch.setattr(root, "handlers", [*root.handlers, handler])
    monkeypatch.setattr(log_line, "write", lambda line: told.write(line.decode()))
    before = root.level
    root.setLevel(logging.DEBUG)
    yield told
    root.setLevel(before)


def test_no_secret_lies_anywhere(db, settings, log):
    given = give_out(settings)
    misuse(given)
    places = {"PostgreSQL": tables(), "Redis": memory(), "the log": log.getvalue()}
    assert hash_token(given["pairing token"]) in places["PostgreSQL"]
    assert hash_token(given["second ticket"]) in places["Redis"]
    assert "/api/auth/password/reset/confirm" in places["the log"]
    assert "user.login_failed" in places["PostgreSQL"]
    found = [(name, place) for place, text in places.items() for name, secret in given.items() if secret in text]
    assert found == []
