"""Fixtures of the control plane's tests: an empty Valkey, people, and clients that speak for them."""

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from django.test import Client
from django.utils import timezone
from whitenoise.middleware import WhiteNoiseMiddleware

from apps.accounts import sessions
from apps.accounts.hashers import Argon2Hasher
from apps.accounts.models import User
from apps.common import redis
from apps.model_registry import finalization
from tests.apps.stores import moto, run_jobs

__all__ = ["moto"]
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True, scope="session")
def _cheap_passwords() -> Iterator[None]:
    """Most tests make a user or two, and each hash of production's strength takes longer than the test itself."""
    assert (Argon2Hasher.time_cost, Argon2Hasher.memory_cost, Argon2Hasher.parallelism) == (2, 19_456, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Argon2Hasher, "time_cost", 1)
        patch.setattr(Argon2Hasher, "memory_cost", 8)
        yield


@pytest.fixture(autouse=True, scope="session")
def _static_files_are_found_once() -> Iterator[None]:
    """Each client of Django's loads the middleware anew, and the static files, which never change, are hundreds."""
    find, found = WhiteNoiseMiddleware.add_files_from_finders, {}

    def once(self: WhiteNoiseMiddleware) -> None:
        if not found:
            find(self)
            found.update(self.files)
        self.files.update(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhiteNoiseMiddleware, "add_files_from_finders", once)
        yield


@pytest.fixture(autouse=True)
def _empty_redis() -> Iterator[None]:
    """Each test starts with no logins, no registry and no throttles."""
    redis.client().flushdb()
    yield
    keys = cast("list[str]", redis.client().keys("*"))
    redis.client().flushdb()
    strange = [key for key in keys if not key.startswith(redis.PREFIXES)]
    assert strange == [], "a key of ours that restoring a backup would not drop"


@pytest.fixture(autouse=True)
def _uploads_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no worker here: who waits for the check of an upload does it."""
    monkeypatch.setattr(finalization, "pause", lambda _seconds: run_jobs())


class Api:
    """A client of the API that sends JSON and shows the parsed answer."""

    def __init__(self, token: str | None = None) -> None:
        self.client = Client(raise_request_exception=False)
        self.token = token

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> "Answer":
        extra = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        if self.token is not None:
            extra.setdefault("HTTP_AUTHORIZATION", f"Bearer {self.token}")
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        kind = extra.pop("HTTP_CONTENT_TYPE", "application/json")
        return Answer(self.client.generic(method, path, data, content_type=kind, **extra))


class Answer:
    """A response; `data` is the envelope's, `code` the error's."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.status: int = response.status_code
        self.headers = response.headers
        is_json = "json" in self.headers.get("Content-Type", "")
        self.json: Any = json.loads(response.content) if is_json and response.content else None

    @property
    def data(self) -> Any:
        assert self.json["success"] is True, self.json
        return self.json["data"]

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.json) == {"success", "error"}, self.json
        assert self.json["success"] is False
        assert self.json["error"]["request_id"] == self.headers["X-Request-ID"]
        error: dict[str, Any] = self.json["error"]
        return error

    @property
    def code(self) -> str:
        code: str = self.error["code"]
        return code


@pytest.fixture
def anonymous() -> Api:
    return Api()


@pytest.fixture
def make_user(db: None) -> Callable[..., User]:
    """Makes a user of an e-mail; the password is PASSWORD."""

    def make(email: str, **fields: Any) -> User:
        return User.objects.create_user(email, PASSWORD, **fields)

    return make


def login_as(user: User) -> Api:
    """A client with a fresh login of the user."""
    token, _ = sessions.create(user_id=user.pk, address="192.0.2.1", agent="tests", now=timezone.now())
    return Api(token)


@pytest.fixture
def alice(make_user: Callable[..., User]) -> User:
    """Owns what the tests speak of."""
    return make_user("alice@example.com", name="Alice")


@pytest.fixture
def bob(make_user: Callable[..., User]) -> User:
    """Another user, who owns nothing here."""
    return make_user("bob@example.com", name="Bob")


@pytest.fixture
def alice_api(alice: User) -> Api:
    return login_as(alice)


@pytest.fixture
def bob_api(bob: User) -> Api:
    return login_as(bob)


@pytest.fixture
def for_nobody_else(alice: User, alice_api: Api, bob_api: Api, anonymous: Api) -> Callable[..., None]:
    """Sees that a call on what is Alice's is refused to everybody else, and to her while she is disabled."""
    staff = login_as(User.objects.create_user("staff@example.com", "x", is_staff=True, is_superuser=True))

    def check(method: str, path: str, body: Any = None) -> None:
        assert bob_api(method, path, body).code == "NOT_FOUND"
        assert staff(method, path, body).code == "NOT_FOUND"
        assert anonymous(method, path, body).code == "UNAUTHENTICATED"
        User.objects.filter(pk=alice.pk).update(is_active=False)
        assert alice_api(method, path, body).status == 401
        User.objects.filter(pk=alice.pk).update(is_active=True)

    return check
