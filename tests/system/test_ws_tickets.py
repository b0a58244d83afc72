"""Tickets and pages on every lane: what `?ticket=` opens, once, and which pages may open a WebSocket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.utils import timezone

from apps.accounts import sessions
from apps.proxy import tickets
from tests.apps.proxy.kit import Peer, until
from tests.apps.proxy.stack import EVERY_CARRIER, EVERY_WAY, Lane, Stack, add_device
from tests.system.ws_kit import WS, echo, ticket_for

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_WAY
CARRIERS = pytest.mark.parametrize("lane", EVERY_CARRIER, indirect=True)
"""For what is asked by no prefix: a daemon refuses an address that brings many bad tickets for a while."""
OWN_URLS = pytest.mark.parametrize("lane", ["tunnel", "front"], indirect=True)
"""For the front end's own URLs where paths pass as they are, for the same reason."""
API_SETTINGS = {"API_THREADS": "16"}


@CARRIERS
@pytest.mark.parametrize(
    "origin,status",
    [("http://front.example", 101), ("http://127.0.0.1:{port}", 101), ("http://evil.example", 403), ("null", 403)],
)
@pytest.mark.parametrize("by", ["bearer", "ticket"])
def test_the_page_that_asks(lane: Lane, origin: str, status: int, by: str) -> None:
    lane.box.on("/ws/echo", echo)
    path, shown = "/ws/echo", lane.token
    ticket = ticket_for(lane)
    if by == "ticket":
        path += f"?ticket={ticket}"
    with lane.wire() as wire:
        head = lane.head("GET", path, *WS, "Origin: " + origin.format(port=lane.port), prefix="")
        if by == "ticket":
            head = head.replace(f"Authorization: Bearer {shown}\r\n".encode(), b"")
        wire.send(head)
        assert wire.read_head().status == status
    if by == "ticket":
        assert (tickets.find(ticket) is None) == (status == 101)


def by_ticket(lane: Lane, path: str, *fields: str, method: str = "GET", prefix: str = "") -> tuple[int, str]:
    """Status and code (empty for what is no refusal of ours) of a request without a header of ours."""
    with lane.wire() as wire:
        lines = [f"{method} {prefix}{path} HTTP/1.1", f"Host: 127.0.0.1:{lane.port}", *fields, "", ""]
        wire.send("\r\n".join(lines).encode())
        got = wire.read_head()
        if got.status < 400:
            return got.status, ""
    with lane.wire() as wire:
        wire.send("\r\n".join(lines).encode())
        got = wire.read()
        return got.status, got.code


@OWN_URLS
@pytest.mark.parametrize("path", ["/api/cameras/0/stream", "/api/inference/x"])
def test_a_ticket_for_an_img_by_a_route_of_the_api(lane: Lane, path: str) -> None:
    shown_once(lane, path, path)


def test_a_ticket_for_an_img(lane: Lane) -> None:
    shown_once(lane, f"{lane.prefix}/deep/x", "/deep/x")


def shown_once(lane: Lane, path: str, seen: str) -> None:
    """A ticket for `path` is good for one GET, of which the box sees `seen` without it."""
    said: list[bytes] = []

    def script(peer: Peer) -> None:
        said.append(peer.head)
        peer.answer(b"picture")

    lane.box.on(seen, script)
    ticket = ticket_for(lane, seen.rpartition("/")[0])
    assert by_ticket(lane, f"{path}?a=1&ticket={ticket}&b=2") == (200, "")
    assert said[0].startswith(f"GET {seen}?a=1&b=2 HTTP/1.1\r\n".encode())
    assert by_ticket(lane, f"{path}?ticket={ticket}") == (401, "UNAUTHENTICATED")
    assert len(said) == 1


OUTSIDE = [
    ("/api/cameras/1", 403, "FORBIDDEN"),
    ("/api/cameras/01", 403, "FORBIDDEN"),
    ("/api/cameras", 403, "FORBIDDEN"),
    ("/api/cameras/0%2Fx", 403, "FORBIDDEN"),
]
"""What a ticket with the prefix `/api/cameras/0` does not open."""


def test_what_a_ticket_is_not_for(lane: Lane, stack: Stack) -> None:
    other = add_device(stack, lane.user_id)
    ticket = ticket_for(lane, "/api/cameras/0")
    mine = f"{lane.prefix}/api/cameras/0"
    for path, *said in OUTSIDE:
        assert by_ticket(lane, f"{lane.prefix}{path}?ticket={ticket}") == tuple(said), path
    assert by_ticket(lane, f"{mine.replace(lane.device_id, other)}?ticket={ticket}") == (403, "FORBIDDEN")
    assert by_ticket(lane, f"/ws/echo?ticket={ticket}", *WS) == (403, "FORBIDDEN")
    assert by_ticket(lane, f"{mine}?ticket=") == (401, "UNAUTHENTICATED")
    assert by_ticket(lane, f"{mine}?ticket=%ff") == (401, "UNAUTHENTICATED")
    assert by_ticket(lane, f"{mine}?ticket={ticket}", "Content-Length: 0", method="POST")[0] == 401
    assert by_ticket(lane, f"{mine}/deep?ticket={ticket}") == (200, "")  # none of these has spent it
    assert by_ticket(lane, f"{mine}?ticket={ticket}") == (401, "UNAUTHENTICATED")
    everywhere = ticket_for(lane)
    for climbs in ("/a/../x", "/a/%2e%2e/x", "/a/..%2fx"):
        assert by_ticket(lane, f"{lane.prefix}{climbs}?ticket={everywhere}") == (400, "BAD_REQUEST")
    assert by_ticket(lane, f"{lane.prefix}/x?ticket={everywhere}") == (200, "")  # nor has one of these


@OWN_URLS
def test_what_a_ticket_is_not_for_by_the_routes_of_the_api(lane: Lane, stack: Stack) -> None:
    other = add_device(stack, lane.user_id)
    ticket = ticket_for(lane, "/api/cameras/0")
    for path, *refused in OUTSIDE:
        assert by_ticket(lane, f"{path}?ticket={ticket}") == tuple(refused), path
    for path, said in (
        (f"/api/cameras/0/../1?ticket={ticket}", (400, "BAD_REQUEST")),
        (f"/api/cameras/0?device_id={other}&ticket={ticket}", (403, "FORBIDDEN")),
        (f"/api/devices/{other}/proxy/api/cameras/0?ticket={ticket}", (403, "FORBIDDEN")),
        ("/api/cameras/0?ticket=", (401, "UNAUTHENTICATED")),
        ("/api/cameras/0?ticket=%ff", (401, "UNAUTHENTICATED")),
    ):
        assert by_ticket(lane, path) == said, path
    for elsewhere in ("/api/devices/scan", "/api/devices"):  # which the daemon has not
        wanted = (404, "NOT_FOUND") if lane.direct else (401, "UNAUTHENTICATED")
        assert by_ticket(lane, f"{elsewhere}?ticket={ticket}") == wanted
    assert by_ticket(lane, f"/api/cameras/0?ticket={ticket}", "X-Device-Id: x") == (404, "NOT_FOUND")
    assert by_ticket(lane, f"/api/cameras/0?ticket={ticket}", "Content-Length: 0", method="POST")[0] == 401
    assert by_ticket(lane, f"/api/cameras/0?device_id={lane.device_id}&ticket={ticket}") == (200, "")


@CARRIERS
def test_a_reusable_ticket_is_good_again_and_again(lane: Lane) -> None:
    """A `<video>` that seeks, an `EventSource` that comes back: the same URL, from the same page."""
    ticket = ticket_for(lane, "/video", reusable=True)
    own = f"{lane.prefix}/video/1.mp4?t=0&ticket={ticket}"
    for _ in range(3):
        assert by_ticket(lane, own, "Range: bytes=5-") == (200, "")
        assert by_ticket(lane, own, method="HEAD") == (200, "")
        assert by_ticket(lane, own, "Origin: http://front.example") == (200, "")
    with ThreadPoolExecutor(5) as pool:
        assert set(pool.map(lambda _: by_ticket(lane, own), range(10))) == {(200, "")}
    assert all(b"ticket" not in head for head in lane.box.heads)
    assert by_ticket(lane, own, "Origin: http://evil.example") == (403, "FORBIDDEN")
    assert by_ticket(lane, own.replace("/video/", "/videos/")) == (403, "FORBIDDEN")
    assert by_ticket(lane, own, *WS) == (403, "FORBIDDEN")
    assert by_ticket(lane, own, "Content-Length: 0", method="POST")[0] == 401
    login = sessions.use(lane.token, now=timezone.now())
    assert login is not None
    sessions.end(login)
    until(lambda: by_ticket(lane, own) == (401, "UNAUTHENTICATED"))  # what a daemon keeps lasts 5 s


def test_one_for_a_single_use_is_no_more_than_that(lane: Lane) -> None:
    """However it is asked for, beside the same by one that may be shown again."""
    once, again = ticket_for(lane, "/x"), ticket_for(lane, "/x", reusable=True)
    assert by_ticket(lane, f"{lane.prefix}/x?ticket={again}") == (200, "")
    assert head_by(lane, once) == 401
    assert by_ticket(lane, f"{lane.prefix}/x?ticket={once}") == (200, "")
    assert by_ticket(lane, f"{lane.prefix}/x?ticket={once}") == (401, "UNAUTHENTICATED")
    assert by_ticket(lane, f"{lane.prefix}/x?ticket={again}") == (200, "")


def head_by(lane: Lane, ticket: str) -> int:
    with lane.wire() as wire:
        wire.send(f"HEAD {lane.prefix}/x?ticket={ticket} HTTP/1.1\r\nHost: 127.0.0.1:{lane.port}\r\n\r\n".encode())
        return wire.read_head().status


@CARRIERS
def test_of_twenty_uses_at_once_one_wins(lane: Lane) -> None:
    lane.box.on("/ws/echo", echo)
    path = f"/ws/echo?ticket={ticket_for(lane)}"

    def use(_: int) -> int:
        with lane.wire() as wire:
            lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{lane.port}", *WS, "", ""]
            wire.send("\r\n".join(lines).encode())
            return wire.read_head().status

    with ThreadPoolExecutor(20) as pool:
        found = sorted(pool.map(use, range(20)))
    assert found.count(101) == 1
    assert set(found) <= {101, 401, 503}  # some may have found all places of this small server taken
