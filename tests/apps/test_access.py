"""Who may do what, on every route: a matrix made from the URL map, so that a route without a row fails.

Alice owns, Bob is another user, Dora is disabled (she owns too), Sam is staff; nobody is no login at all.
"""

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from apps.accounts.models import User
from tests.apps import objects
from tests.apps.access_table import INTERNAL, LOGIN, OBJECT, PAGE, PUBLIC, TABLE, Row
from tests.apps.conftest import Answer, Api, login_as

ROLES = ("anonymous", "disabled", "other", "staff", "owner")
METHODS = ("get", "post", "put", "patch", "delete")
_PARAMETER = re.compile(r"<str:(\w+)>|\(\?P<(\w+)>[^()]*\)")


def url_map() -> Iterator[tuple[str, str]]:
    """Each route and method of ours, as `("GET", "/api/devices/{id}")`; the admin has tests of its own."""
    for template, view in _walk(get_resolver().url_patterns):
        if template.startswith("admin/") or view is None:
            continue
        found = getattr(view, "view_class", None) or getattr(view, "cls", None)
        path = "/" + _PARAMETER.sub(
            lambda m: "{" + (m[1] or m[2]) + "}", template.removeprefix("^").removesuffix(r"\Z")
        )
        methods = [name for name in METHODS if hasattr(found, name)] if _is_ours(found) else _rows_of(path)
        for method in methods:
            yield method.upper(), path


def _is_ours(view: type | None) -> bool:
    return view is not None and view.__module__.startswith("apps.")


def _rows_of(path: str) -> list[str]:
    """The methods of a view that is a function or a library's: nothing lists them, but it needs a row at least."""
    return [key.partition(" ")[0] for key in TABLE if key.partition(" ")[2] == path] or ["get"]


def _walk(entries: list[URLPattern | URLResolver], before: str = "") -> Iterator[tuple[str, Any]]:
    for entry in entries:
        if isinstance(entry, URLResolver):
            yield from _walk(entry.url_patterns, before + str(entry.pattern))
        else:
            yield before + str(entry.pattern), entry.callback


@dataclass
class World:
    """The people, and what Alice owns and what Dora owns: path parameter values by route prefix."""

    callers: dict[str, Api]
    owned: dict[str, dict[str, str]]
    of_disabled: dict[str, dict[str, str]]

    def ask(self, role: str, method: str, path: str, body: Any) -> Answer:
        """The request as our gunicorn worker hands it on: with the raw target and fields beside Django's."""
        caller = self.callers[role]
        caller.client.defaults |= {"visiona.raw_target": path, "visiona.raw_headers": [("Host", "testserver")]}
        return caller(method, path, body)

    def path(self, row: Row, template: str, role: str) -> str:
        values = (self.of_disabled if role == "disabled" else self.owned)[row.of] if row.of else {}
        return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], "x"), template)


@pytest.fixture
def world(db: None) -> World:
    alice, bob, dora, sam = (
        User.objects.create(
            email=f"{name}@example.com", password="!", is_staff=name == "sam", is_superuser=name == "sam"
        )
        for name in ("alice", "bob", "dora", "sam")
    )
    callers = {"owner": login_as(alice), "other": login_as(bob), "staff": login_as(sam), "disabled": login_as(dora)}
    made = World({**callers, "anonymous": Api()}, objects.make_all(alice), objects.make_all(dora))
    User.objects.filter(pk=dora.pk).update(is_active=False)
    return made


def test_each_route_has_its_row_and_each_row_its_route() -> None:
    routes = {f"{method} {path}" for method, path in url_map()}
    assert routes - TABLE.keys() == set(), "routes without a row in tests/apps/access_table.py"
    assert TABLE.keys() - routes == set(), "rows without a route"


@pytest.mark.parametrize("key", sorted(TABLE))
def test_who_may(world: World, key: str) -> None:
    """The owner comes last: who may not has changed nothing then."""
    row = TABLE[key]
    method, _, template = key.partition(" ")
    for role in ROLES:
        answer = world.ask(role, method, world.path(row, template, role), row.body)
        assert answer.status == expected(row, role), (role, answer.json)
        if answer.status >= 400 and row.kind != PAGE:
            assert answer.error["code"], role


def expected(row: Row, role: str) -> int:
    """The status that the role has to get."""
    if row.kind in (PUBLIC, PAGE):
        return row.status
    if row.kind == INTERNAL or role in ("anonymous", "disabled"):
        return 401
    if row.kind == OBJECT and role != "owner":
        return 404
    return row.status if role == "owner" else row.others or row.status


@pytest.mark.parametrize("key", sorted(key for key, row in TABLE.items() if row.kind == OBJECT))
def test_what_does_not_exist_looks_like_what_is_another_users(world: World, key: str) -> None:
    method, _, template = key.partition(" ")
    nothing = re.sub(r"\{(id|device_id)\}", str(uuid.uuid4()), template).replace("{path}", "x")
    missing = world.ask("owner", method, nothing, TABLE[key].body)
    foreign = world.ask("other", method, world.path(TABLE[key], template, "other"), TABLE[key].body)
    assert (missing.status, missing.code) == (foreign.status, foreign.code) == (404, "NOT_FOUND")
    assert missing.error["message"] == foreign.error["message"]


@pytest.mark.parametrize(
    "key", sorted(key for key, row in TABLE.items() if row.kind == LOGIN and key.startswith("GET"))
)
def test_a_list_shows_nothing_of_another_user(world: World, key: str) -> None:
    theirs = {value for values in world.owned.values() for value in values.values() if len(value) > 30}
    for role in ("other", "staff"):
        shown = str(world.ask(role, "GET", key.removeprefix("GET ").replace("{path}", "x"), TABLE[key].body).json)
        assert not [value for value in theirs if value in shown], role
