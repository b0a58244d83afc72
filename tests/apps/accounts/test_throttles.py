"""Guessing passwords, registering in bulk, calling without end: what is refused, and who is not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.test import Client

from apps.accounts import hashers, hashing
from apps.accounts.hashing import Turns
from apps.audit.models import AuditEvent
from apps.common import redis
from apps.common.errors import DomainError
from tests.apps.conftest import PASSWORD, Api, login_as

HERE, ELSEWHERE = "192.0.2.1", "198.51.100.9"


@pytest.fixture
def limits(settings):
    """Sets limits: `limits(THROTTLE_LOGIN=3)`."""

    def put(**values: int) -> None:
        settings.VISIONA = {**settings.VISIONA, **values}

    return put


@pytest.fixture(autouse=True)
def _behind_a_proxy(settings):
    """Tests say where they come from by X-Forwarded-For."""
    settings.VISIONA = {**settings.VISIONA, "TRUSTED_PROXIES": ("127.0.0.1",)}


def log_in(api, email="alice@example.com", password="wrong password", address=HERE):
    return api("POST", "/api/auth/login", {"email": email, "password": password}, x_forwarded_for=address)


def test_the_eleventh_failed_login_of_a_minute_is_refused(anonymous, alice):
    assert [log_in(anonymous).code for _ in range(10)] == ["INVALID_CREDENTIALS"] * 10
    refused = log_in(anonymous, "ALICE@example.com")  # the e-mail in any case
    assert (refused.status, refused.code) == (429, "RATE_LIMITED")
    seconds = int(refused.headers["Retry-After"])
    assert 1 <= seconds <= 60
    assert refused.headers["RateLimit-Limit"] == "10"
    assert refused.headers["RateLimit-Remaining"] == "0"
    assert refused.headers["RateLimit-Reset"] == str(seconds)
    assert log_in(anonymous, password=PASSWORD).status == 429  # even the right one: nothing is told


def test_nobody_else_is_locked_out(anonymous, alice, bob, limits):
    limits(THROTTLE_LOGIN=2)
    while log_in(anonymous).status != 429:
        pass
    assert log_in(anonymous, password=PASSWORD, address=ELSEWHERE).status == 200  # Alice from her own address
    assert log_in(anonymous, "bob@example.com", PASSWORD).status == 200  # Bob from the attacker's


def test_successes_are_not_counted_and_reset_nothing(anonymous, alice, limits):
    limits(THROTTLE_LOGIN=3)
    for _ in range(8):
        assert log_in(anonymous, password=PASSWORD).status == 200
    assert [log_in(anonymous).status for _ in range(2)] == [401, 401]
    assert log_in(anonymous, password=PASSWORD).status == 200
    assert [log_in(anonymous).status for _ in range(2)] == [401, 429]


def test_a_right_password_of_a_disabled_user_is_no_guess(anonymous, make_user, limits):
    limits(THROTTLE_LOGIN=1)
    make_user("off@example.com", is_active=False)
    for _ in range(3):
        assert log_in(anonymous, "off@example.com", PASSWORD).code == "ACCOUNT_DISABLED"


def test_many_accounts_from_one_address(anonymous, db, limits):
    limits(THROTTLE_LOGIN_ADDRESS=4)
    assert [log_in(anonymous, f"u{n}@example.com").status for n in range(6)] == [401] * 4 + [429] * 2
    assert log_in(anonymous, "u9@example.com", address=ELSEWHERE).status == 401


def test_an_ipv6_client_has_one_counter_for_its_64(anonymous, alice, limits):
    limits(THROTTLE_LOGIN=2)
    assert [log_in(anonymous, address=f"2001:db8::{n}").status for n in range(3)] == [401, 401, 429]
    assert log_in(anonymous, address="2001:db8:0:1::1").status == 401


def test_an_untrusted_client_cannot_name_its_address(anonymous, alice, limits, settings):
    limits(THROTTLE_LOGIN=2, TRUSTED_PROXIES=())
    assert [log_in(anonymous, address=f"192.0.2.{n}").status for n in range(3)] == [401, 401, 429]


def test_zero_is_no_limit(anonymous, alice, limits):
    limits(THROTTLE_LOGIN=0, THROTTLE_LOGIN_ADDRESS=0)
    assert {log_in(anonymous).status for _ in range(12)} == {401}
    assert not redis.client().keys("visiona:throttle:*")


@pytest.mark.django_db(transaction=True)
def test_many_at_once_guess_no_oftener(make_user, limits):
    limits(THROTTLE_LOGIN=4)
    make_user("alice@example.com")

    def guess(_number: int) -> int:
        try:
            return log_in(Api()).status
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(guess, range(16)))
    assert seen.count(401) == 4
    assert seen.count(429) == 12


def test_a_refused_login_hashes_nothing(anonymous, alice, limits, monkeypatch):
    limits(THROTTLE_LOGIN=1)
    assert log_in(anonymous).status == 401
    monkeypatch.setattr(hashers.Argon2Hasher, "verify", None)
    monkeypatch.setattr(hashers.Argon2Hasher, "encode", None)
    assert log_in(anonymous).status == 429


def test_the_admins_form_counts_with_it(alice, limits):
    limits(THROTTLE_LOGIN=2)
    client = Client(raise_request_exception=False)
    form = {"username": "alice@example.com", "password": "wrong password"}
    seen = [client.post("/admin/login/", form, HTTP_X_FORWARDED_FOR=HERE).status_code for _ in range(3)]
    assert seen == [200, 200, 429]
    assert AuditEvent.objects.filter(action="admin.login_failed").count() == 2


def test_registrations_from_one_address(anonymous, db, limits):
    limits(THROTTLE_REGISTER=2)

    def register(number, address=HERE):
        body = {"email": f"new{number}@example.com", "password": PASSWORD}
        return anonymous("POST", "/api/auth/register", body, x_forwarded_for=address)

    assert anonymous("POST", "/api/auth/register", {"email": "x"}, x_forwarded_for=HERE).status == 400  # not counted
    assert [register(n).status for n in range(3)] == [201, 201, 429]
    assert register(4, ELSEWHERE).status == 201


def test_calls_of_one_user(alice, bob, limits):
    limits(THROTTLE_API=3)
    first, second, other = login_as(alice), login_as(alice), login_as(bob)
    assert [api("GET", "/api/auth/me").status for api in (first, second, first, second)] == [200, 200, 200, 429]
    refused = first("GET", "/api/devices")
    assert (refused.code, refused.headers["RateLimit-Limit"]) == ("RATE_LIMITED", "3")
    assert other("GET", "/api/auth/me").status == 200
    assert Api("vAu_" + "0" * 32)("GET", "/api/auth/me").status == 401


def test_calls_of_the_static_user(anonymous, db, limits):
    limits(THROTTLE_API=2, STATIC_USER_ID="demo-user")
    assert [anonymous("GET", "/api/auth/me").status for _ in range(3)] == [200, 200, 429]


def test_the_proxy_has_a_limit_of_its_own(alice_api, limits):
    limits(THROTTLE_API=1, THROTTLE_PROXY=2)
    # The test client is no server that the proxy runs on, so that what is let through fails: counted it is.
    assert [alice_api("GET", "/api/cameras/0/stream").status for _ in range(3)] == [500, 500, 429]
    assert alice_api("GET", "/api/auth/me").status == 200


def test_public_routes_are_not_counted(anonymous, db, limits):
    limits(THROTTLE_API=1)
    assert {anonymous("GET", "/healthz").status for _ in range(3)} == {200}


# --- turns ------------------------------------------------------------------------------------------------------------
def test_a_turn_within_a_turn_is_the_same():
    turns = Turns(1, 0)
    with turns.turn(), turns.turn():
        pass
    with turns.turn():
        pass


def test_as_many_as_may_wait_wait_and_the_next_is_refused():
    turns = Turns(1, 1, patience=30)
    inside, leave, waited = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with turns.turn():
            inside.set()
            assert leave.wait(30)

    def wait() -> None:
        with turns.turn():
            waited.set()

    holder, waiter = threading.Thread(target=hold), threading.Thread(target=wait)
    holder.start()
    assert inside.wait(30)
    waiter.start()
    while turns._places._value:  # until it has its place
        pass
    with pytest.raises(DomainError, match="OVERLOADED"), turns.turn():
        pass
    leave.set()
    holder.join(30)
    waiter.join(30)
    assert waited.is_set()
    with turns.turn():  # nothing is kept of all that
        pass


def test_few_threads_hash_whoever_asks(monkeypatch):
    """The C library keeps for each thread that hashed what that took: 20 logins at once cost the API 700 MB."""
    turns = Turns(2, 30)
    monkeypatch.setattr(hashers, "turns", lambda: turns)
    seen: set[int] = set()
    monkeypatch.setattr(
        hashers.Argon2PasswordHasher, "verify", lambda *_: bool(seen.add(threading.get_ident())) or True
    )
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait(30)
        assert hashers.Argon2Hasher().verify("a", "b")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 1 <= len(seen) <= 2


def test_who_has_waited_long_enough_is_refused():
    turns = Turns(1, 1, patience=0.01)
    refused: list[str] = []

    def late() -> None:
        try:
            with turns.turn():
                pass
        except DomainError as error:
            refused.append(error.code)

    with turns.turn():
        thread = threading.Thread(target=late)
        thread.start()
        thread.join(30)
    assert refused == ["OVERLOADED"]


def test_a_login_that_finds_no_turn_is_told_to_come_again(anonymous, alice, monkeypatch):
    full = Turns(1, 0)
    monkeypatch.setattr(hashing, "turns", lambda: full)
    monkeypatch.setattr("apps.accounts.attempts.turns", lambda: full)
    held = full._places.acquire(blocking=False)
    assert held
    answer = log_in(anonymous)
    assert (answer.status, answer.code) == (503, "OVERLOADED")
    assert answer.headers["Retry-After"] == "1"
