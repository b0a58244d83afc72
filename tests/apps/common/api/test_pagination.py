"""Cursor pages: whole, without doubles, in both directions, on ties, while rows come and go."""

import datetime as dt
import itertools
import json

import pytest
from django.test import RequestFactory
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.request import Request

from apps.accounts.models import User
from apps.common.api.pagination import Cursor, paginate, paginate_list
from apps.common.errors import DomainError
from apps.common.moments import read_moment
from apps.devices.models import Device

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def ask(url: str = "/rows") -> Request:
    return Request(RequestFactory().get(url))


@pytest.fixture
def users(db) -> list[User]:
    """Seven, of which three have the same name and three the same moment."""
    names = ["b", "a", "b", "c", "b", "ö", "Z"]
    for index, name in enumerate(names):
        user = User.objects.create_user(f"{index}@example.com", name=name)
        User.objects.filter(pk=user.pk).update(created_at=NOW + dt.timedelta(seconds=index // 3))
    return list(User.objects.all())


def walk(rows, ordering: str, limit: int, key: str = "next") -> list[list[str]]:
    pages, cursor = [], None
    while True:
        found, meta = paginate(ask(), rows, limit=limit, ordering=ordering, cursor=cursor)
        pages.append([row.email for row in found])
        assert meta["total"] == rows.count()
        if meta[key] is None:
            return pages
        cursor = meta[key].rpartition("cursor=")[2]


@pytest.mark.parametrize("ordering", ["created_at", "-created_at", "name", "-name"])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
def test_pages_are_whole_and_in_order(users, ordering, limit):
    pages = walk(User.objects.all(), ordering, limit)
    sign = "-" if ordering.startswith("-") else ""
    assert list(itertools.chain(*pages)) == list(
        User.objects.order_by(ordering, sign + "id").values_list("email", flat=True)
    )
    assert all(len(page) == limit for page in pages[:-1])


@pytest.mark.parametrize("ordering", ["-created_at", "name"])
def test_previous_leads_back_over_the_same_pages(users, ordering):
    rows = User.objects.all()
    first, meta = paginate(ask(), rows, limit=3, ordering=ordering, cursor=None)
    assert meta["previous"] is None
    second, meta = paginate(ask(), rows, limit=3, ordering=ordering, cursor=meta["next"].rpartition("cursor=")[2])
    back, meta = paginate(ask(), rows, limit=3, ordering=ordering, cursor=meta["previous"].rpartition("cursor=")[2])
    assert back == first
    assert meta["previous"] is None
    again, _ = paginate(ask(), rows, limit=3, ordering=ordering, cursor=meta["next"].rpartition("cursor=")[2])
    assert again == second


def test_rows_that_come_or_go_shift_no_page(users):
    rows = User.objects.all()
    first, meta = paginate(ask(), rows, limit=3, ordering="-created_at", cursor=None)
    expected = walk(rows, "-created_at", 3)[1]
    User.objects.create_user("newest@example.com")
    first[-1].delete()
    second, _ = paginate(ask(), rows, limit=3, ordering="-created_at", cursor=meta["next"].rpartition("cursor=")[2])
    assert [row.email for row in second] == expected


def test_a_page_costs_two_queries(users, django_assert_num_queries):
    with django_assert_num_queries(2):
        paginate(ask(), User.objects.all(), limit=3, ordering="name", cursor=None)


def test_links_keep_the_filters_and_the_limit(users):
    _, meta = paginate(ask("/rows?limit=3&search=a%20b%26c"), User.objects.all(), limit=3, ordering="name", cursor=None)
    assert meta["next"].startswith("http://testserver/rows?limit=3&search=a+b%26c&cursor=n")


def test_no_rows_are_one_empty_page(db):
    found, meta = paginate(ask(), User.objects.all(), limit=3, ordering="name", cursor=None)
    assert (found, meta) == ([], {"total": 0, "next": None, "previous": None})


@pytest.mark.parametrize(
    "cursor", ["n" + "00" * 16, "n" + b'["name","x"]'.hex(), "n" + b"[" .hex() * 1000, "n" + b"\xff".hex() * 50,
               "n" + json.dumps(["name", "\ud800", "0" * 32]).encode().hex(), "n" + (b"name\0x\0" + b"0" * 31).hex(),
               Cursor("name", "nul\0", "0" * 32, False).encode(), Cursor("name", "a", "no-uuid", False).encode()],
)  # fmt: skip
def test_a_cursor_that_we_did_not_make_is_no_page(users, cursor):
    with pytest.raises(DomainError, match="NOT_FOUND"):
        paginate(ask(), User.objects.all(), limit=3, ordering="name", cursor=cursor)


def test_a_value_that_does_not_fit_the_field_is_no_page(users):
    cursor = Cursor("created_at", "yesterday", "0" * 32, False).encode()
    with pytest.raises(DomainError, match="NOT_FOUND"):
        paginate(ask(), User.objects.all(), limit=3, ordering="created_at", cursor=cursor)
    with pytest.raises(DomainError, match="NOT_FOUND"):
        paginate_list(ask(), [], limit=3, ordering="created_at", cursor=cursor)


def test_a_cursor_of_another_ordering_is_refused(users):
    cursor = Cursor("name", "a", "0" * 32, False).encode()
    with pytest.raises(DomainError, match="VALIDATION_ERROR"):
        paginate(ask(), User.objects.all(), limit=3, ordering="-name", cursor=cursor)


@pytest.mark.parametrize("longest", ["x", "名", "😀", "\x01", '"', "\\"])
def test_our_own_links_are_taken_whatever_the_names_hold(alice, alice_api, longest):
    """A name is the longest that a list goes by: 200 characters."""
    for sign in "ab":
        Device.objects.create(owner=alice, name=sign + longest * 199)
    answer = alice_api("GET", "/api/devices?ordering=name&limit=1")
    for link, name in [("next", "b"), ("previous", "a")]:
        answer = alice_api("GET", answer.json["meta"][link].removeprefix("http://testserver"))
        assert answer.status == 200, answer.json
        assert [row["name"][0] for row in answer.data] == [name]


@given(st.sampled_from(["name", "-at"]), st.text(), st.uuids(), st.booleans())
def test_a_cursor_survives_the_journey(ordering, value, row_id, back):
    cursor = Cursor(ordering, value.replace("\0", ""), str(row_id), back)
    assert Cursor.decode(cursor.encode(), ordering) == cursor


EDGES = (
    "9999-12-31T23:59:59.999999-23:59", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00", "2030-01-01T00:00:00", "1969-12-31T23:59:59+00:00",
)  # fmt: skip


@pytest.mark.parametrize("moment", EDGES)
def test_a_cursor_at_the_edge_of_the_calendar_is_no_page(users, moment):
    """Made by hand, as anybody can: no time zone may lead out of Python's years, and it was a 500 in every list."""
    cursor = Cursor("-created_at", moment, str(users[0].pk), False).encode()
    for page in (paginate, paginate_list):
        rows = User.objects.all() if page is paginate else users
        with pytest.raises(DomainError) as caught:
            page(ask(), rows, limit=2, ordering="-created_at", cursor=cursor)
        assert caught.value.code == "NOT_FOUND"


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_any_moment_is_read_or_refused(at):
    try:
        found = read_moment(at.isoformat())
    except ValueError:
        return
    assert found == at
    assert found.tzinfo is dt.UTC
