"""The front end's own URLs, on both ports that serve them, and the scan, which port 3721 has alone: which device is
meant, who may, what a scan stores.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from apps.tunnels import registry
from tests.apps.proxy.kit import Box, Got, Peer, Wire
from tests.apps.proxy.stack import Lane, Stack, add_device, add_user, log_in, put_online
from tests.apps.proxy.stand_in import StandInDaemon
from tests.system.ws_kit import WS, ticket_for

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
BOTH = pytest.mark.parametrize("lane", ["stand-in", "front"], indirect=True)
"""By the API and by the daemon itself."""

FOUND = {
    "devices": [
        {"serial": "KL-1", "chip": "KL720", "usb_id": "3231:0720", "firmware": "2.2.0", "status": "ready", "odd": [1]},
        {"serial": "", "chip": "nameless"},
    ],
    "more": "of the box's own",
}


@BOTH
@pytest.mark.parametrize("path", ["/api/cameras", "/api/cameras/", "/api/cameras/0/stream", "/api/inference/a%2Fb"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_cameras_and_inference_pass_path_for_path(lane: Lane, method: str, path: str) -> None:
    said = lane.ask(method, f"{path}?x=1", prefix="").json
    assert said["line"] == f"{method} {path}?x=1 HTTP/1.1"


@BOTH
def test_odd_requests_are_taken_where_paths_pass_as_they_are(lane: Lane) -> None:
    own = f"127.0.0.1:{lane.port}"
    for change in (
        (b" /api/cameras/x ", " /api/cameras/相機?q=機 ".encode()),
        (b" /api/cameras/x ", f" http://{own}/api/cameras/x?y ".encode()),
        (f"Host: {own}".encode(), b"Host: my_cloud:80"),
        (f"Host: {own}".encode(), b"Host:"),
    ):
        with lane.wire() as wire:
            wire.send(lane.head("GET", "/api/cameras/x", prefix="").replace(*change))
            assert wire.read_head().status == 200, change
    assert lane.ask("GET", "//x", prefix="/api/cameras").json["line"] == "GET /api/cameras//x HTTP/1.1"
    said = lane.ask("MOVE", "/api/cameras/x", f"Destination: http://{own}/api/cameras/y", prefix="").json["fields"]
    assert ["Destination", "/api/cameras/y"] in said
    assert "x-forwarded-prefix" not in {name.lower() for name, _ in said}


@BOTH
def test_a_location_is_not_touched_where_paths_pass_as_they_are(lane: Lane) -> None:
    lane.box.on("/api/cameras/go", lambda peer: peer.answer(b"", "302 Found", "Location: /api/cameras/0"))
    assert lane.ask("GET", "/api/cameras/go", prefix="").one("location") == "/api/cameras/0"


@pytest.fixture
def second(lane: Lane, stack: Stack, daemon: StandInDaemon) -> Iterator[str]:
    """Another device of the same user, which is online."""
    device = add_device(stack, lane.user_id)
    session = put_online(device, lane.user_id, daemon)
    yield device
    registry.remove([(device, session)])


@BOTH
def test_several_online_devices_must_be_named(lane: Lane, second: str) -> None:
    got = lane.ask("GET", "/api/cameras", prefix="")
    assert (got.status, got.code) == (409, "AMBIGUOUS_DEVICE")
    assert got.json["error"]["details"]["devices"] == sorted([second, lane.device_id])
    assert lane.ask("GET", f"/api/cameras?device_id={second}", prefix="").json["line"] == "GET /api/cameras HTTP/1.1"
    assert lane.ask("GET", "/api/cameras?device_id=cam-7", f"X-Device-Id: {second}", prefix="").json["line"] == (
        "GET /api/cameras?device_id=cam-7 HTTP/1.1"
    )
    assert lane.ask("GET", "/api/cameras?device_id=cam-7", prefix="").code == "AMBIGUOUS_DEVICE"
    for nobody in (str(uuid.uuid4()), "no id", ""):
        got = lane.ask("GET", f"/api/cameras?device_id={second}", f"X-Device-Id: {nobody}", prefix="")
        assert got.code == "NOT_FOUND", nobody
    twice = [f"X-Device-Id: {each}" for each in (second, lane.device_id)]
    assert lane.ask("GET", "/api/cameras", *twice, prefix="").code == "NOT_FOUND"


@BOTH
def test_no_online_device(stack: Stack, lane: Lane) -> None:
    lane.token = log_in(add_user(stack))
    got = lane.ask("GET", "/api/cameras", prefix="")
    assert (got.status, got.code) == (503, "TUNNEL_DISCONNECTED")
    assert got.all("retry-after")


@BOTH
def test_an_offline_device(stack: Stack, lane: Lane) -> None:
    offline = add_device(stack, lane.user_id)
    assert lane.ask("GET", "/x", prefix=f"/api/devices/{offline}/proxy").code == "TUNNEL_DISCONNECTED"


@BOTH
@pytest.mark.parametrize("who", ["bob", "nobody", "forged"])
@pytest.mark.parametrize("where", ["devices/{device}/proxy/x", "cameras/0?device_id={device}"])
def test_only_the_owner_gets_through(lane: Lane, stack: Stack, who: str, where: str) -> None:
    refuses_others(lane, stack, who, where)


@pytest.mark.parametrize("who", ["bob", "nobody", "forged"])
def test_only_the_owner_scans(lane: Lane, stack: Stack, who: str) -> None:
    refuses_others(lane, stack, who, "devices/scan?device_id={device}")


def refuses_others(lane: Lane, stack: Stack, who: str, where: str) -> None:
    lane.token = {"bob": log_in(add_user(stack)), "nobody": "", "forged": "vAu_" + "0" * 32}[who]
    got = lane.ask("GET", "/api/" + where.format(device=lane.device_id), prefix="")
    assert (got.status, got.code) == ((404, "NOT_FOUND") if who == "bob" else (401, "UNAUTHENTICATED"))
    assert lane.box.heads == []


@BOTH
@pytest.mark.parametrize("device", ["no-uuid", "00000000-0000-0000-0000-000000000000"])
def test_an_unknown_device_is_not_found(lane: Lane, device: str) -> None:
    assert lane.ask("GET", "/x", prefix=f"/api/devices/{device}/proxy").code == "NOT_FOUND"


@BOTH
@pytest.mark.parametrize("path", ["/api/%63ameras/0", "/api/cameras%2F0"])
def test_a_path_in_disguise_passes_as_it_is(lane: Lane, path: str) -> None:
    assert lane.ask("GET", path, prefix="").json["line"] == f"GET {path} HTTP/1.1"


@BOTH
@pytest.mark.parametrize("path", ["/api/cameras%3Fx", "/api/camerasx", "/api//cameras/0", "/api/x/../cameras/0"])
def test_what_is_no_route_is_not_found(lane: Lane, path: str) -> None:
    assert lane.ask("GET", path, prefix="").code == "NOT_FOUND"
    with lane.wire() as wire:  # on a connection that served another request before
        wire.send(lane.head("GET", "/api/cameras/0", prefix="") + lane.head("GET", path, prefix=""))
        assert [wire.read().status for _ in range(2)] == [200, 404]


@BOTH
def test_a_prefix_in_disguise_is_refused(lane: Lane) -> None:
    got = lane.ask("GET", "/x", prefix=f"/api/%64evices/{lane.device_id}/proxy")
    assert (got.status, got.code) == (400, "BAD_REQUEST")


@BOTH
@pytest.mark.parametrize("path", ["", "/"])
def test_the_root_of_the_box(lane: Lane, path: str) -> None:
    assert lane.ask("GET", path).json["line"] == "GET / HTTP/1.1"


# --- scan -------------------------------------------------------------------------------------------------------------
def stored(stack: Stack, lane: Lane) -> list[tuple[object, ...]]:
    return stack.rows(
        "SELECT serial, chip, usb_id, firmware, status FROM accelerators WHERE device_id = %s", lane.device_id
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_scan_passes_unchanged_and_is_stored(lane: Lane, stack: Stack, method: str) -> None:
    body = json.dumps(FOUND, indent=3).encode()
    seen: list[str] = []
    lane.box.on("/api/devices/scan", lambda peer: (seen.append(peer.method), peer.answer(body))[1])
    got = lane.ask(method, f"/api/devices/scan?device_id={lane.device_id}&deep=1", prefix="")
    assert (got.status, got.body, seen) == (200, body, [method])
    assert stored(stack, lane) == [("KL-1", "KL720", "3231:0720", "2.2.0", "ready")]


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[1, 2]", b'{"devices": 7}', b"[" * 100000, b'{"devices": [{"serial": "a\\u0000b"}]}']
)
def test_a_scan_that_is_none_passes_all_the_same(lane: Lane, body: bytes) -> None:
    lane.box.on("/api/devices/scan", lambda peer: peer.answer(body))
    got = lane.ask("POST", "/api/devices/scan", prefix="")
    assert (got.status, got.body) == (200, body)


def test_a_failed_scan_stores_nothing(lane: Lane, stack: Stack) -> None:
    lane.box.on("/api/devices/scan", lambda peer: peer.answer(json.dumps(FOUND).encode(), "500 Broken"))
    assert lane.ask("POST", "/api/devices/scan", prefix="").status == 500
    assert stored(stack, lane) == []


def test_a_scan_knows_two_methods(lane: Lane) -> None:
    got = lane.ask("DELETE", "/api/devices/scan", prefix="")
    assert (got.status, got.code, got.one("allow")) == (405, "METHOD_NOT_ALLOWED", "GET, POST")


# --- sockets ----------------------------------------------------------------------------------------------------------
def test_what_asks_for_no_upgrade_is_told_so(lane: Lane) -> None:
    got = lane.ask("GET", "/ws/inference", prefix="")
    assert (got.status, got.code, got.one("upgrade")) == (426, "UPGRADE_REQUIRED", "websocket")


def test_a_box_cannot_switch_unasked(lane: Lane, box: Box, daemon: StandInDaemon) -> None:
    def switch(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: odd\r\nConnection: Upgrade\r\n\r\nbytes")

    box.on("/switch", switch)
    assert lane.ask("GET", "/switch").code == "AGENT_BAD_RESPONSE"


# --- one request, asked of both ports ---------------------------------------------------------------------------------
OWN = {"date", "x-request-id", "connection"}
"""Fields of an answer that differ from one time to the next."""


def told(got: Got) -> tuple[object, ...]:
    """What is to be the same: status, fields, and the code or what the box saw."""
    fields = sorted((name.lower(), value) for name, value in got.fields if name.lower() not in OWN | {"content-length"})
    said = json.loads(got.body) if got.body else None
    if got.status != 200 and said is not None:
        said = said["error"]["code"], said["error"].get("details")  # the words are each program's own
    elif said is not None:
        said["fields"] = sorted(
            [name.lower(), value] for name, value in said["fields"] if name.lower() not in OWN | {"traceparent"}
        )
    return got.status, said, fields


DISGUISED = "/api/%64evices/{device}/proxy/x"
REQUESTS = [
    ("GET", "/api/cameras/0", ()),
    ("GET", "/api/cameras", ("Origin: http://front.example",)),
    ("OPTIONS", "/api/cameras/0", ("Origin: http://front.example", "Access-Control-Request-Method: PATCH")),
    ("OPTIONS", "/api/devices/{device}/proxy/x", ("Origin: http://evil.example", "Access-Control-Request-Method: PUT")),
    ("OPTIONS", "/api/cameras/0", ()),
    ("HEAD", "/api/inference/x", ()),
    ("POST", "/api/inference/run?device_id={device}&a=1&access_token={token}", ("Content-Length: 0",)),
    ("GET", "/api/cameras/0?device_id={offline}", ()),
    ("GET", "/api/cameras/0?device_id={offline}&ticket={ticket}", ()),
    ("GET", "/api/cameras/0?ticket={ticket}", ("X-Device-Id: {offline}",)),
    ("GET", "/api/cameras/0?device_id={foreign}", ()),
    ("GET", "/api/cameras/0?device_id=x&device_id={device}", ()),
    ("GET", "/api/cameras/0", ("X-Device-Id: {foreign}",)),
    ("GET", "/api/cameras/0", ("X-Device-Id: nobody",)),
    ("GET", "/api/cameras/0", ("X-Device-Id:",)),
    ("GET", "/api/cameras/0?device_id={device}", ("X-Device-Id: {device}", "X-Device-Id: {device}")),
    ("GET", "/api/devices/{device}/proxy", ()),
    ("GET", "/api/devices/{device}/proxy/", ("X-Device-Id: {foreign}",)),
    ("GET", "/api/devices/{offline}/proxy/x", ()),
    ("GET", "/api/devices/{foreign}/proxy/x", ()),
    ("GET", "/api/devices/nobody/proxy/x", ()),
    ("GET", "/api/devices/{device}/proxy/../x", ()),
    ("GET", "/api/devices/{foreign}/proxy/../x", ()),
    ("GET", DISGUISED, ()),
    ("GET", "/api/%64evices/{foreign}/proxy/x", ()),
    ("GET", "/api/cameras/%2e%2e/x", ()),
    ("GET", "/api/%63ameras/0", ()),
    ("GET", "/api/cameras/0", ("Accept-Language: zh-TW", "X-Device-Id: nobody")),
    ("PUT", "/api/cameras/0", ("Content-Length: 9999999999",)),
    ("PUT", "/api/cameras/0", ("Content-Length: x",)),
    ("PUT", "/api/cameras/0", ("Transfer-Encoding: gzip",)),
    ("TRACE", "/api/cameras/0", ()),
    ("GET", "/api/cameras/0", (*WS, "Origin: http://evil.example")),
    ("GET", "/api/cameras/0?device_id={foreign}", (*WS, "Origin: http://evil.example")),
    ("GET", "/api/cameras/0", (*WS, "Content-Length: 1")),
    ("MOVE", "/api/cameras/a", ("Destination: /api/cameras/b",)),
    ("MOVE", "/api/cameras/a", ("Destination: /api/devices/{device}/proxy/b",)),
    ("MOVE", "/api/cameras/a", ("Destination: /api/devices/{foreign}/proxy/b",)),
    ("COPY", "/api/devices/{device}/proxy/a", ("Destination: /api/devices/{foreign}/proxy/b",)),
]


@pytest.mark.parametrize("lane", ["front"], indirect=True)
@pytest.mark.parametrize("who", ["owner", "nobody", "forged", "by ticket"])
def test_both_ports_answer_alike(lane: Lane, stack: Stack, who: str) -> None:
    foreign, offline = add_device(stack, add_user(stack)), add_device(stack, lane.user_id)
    ticket = ticket_for(lane, "/api/cameras", reusable=True)
    names = {"device": lane.device_id, "offline": offline, "foreign": foreign, "ticket": ticket, "token": lane.token}
    credential = {"owner": lane.token, "forged": f"vAu_{uuid.uuid4().hex}"}.get(who)
    wrong = []
    for method, path, fields in REQUESTS:
        if who == "by ticket" and path == DISGUISED:
            continue  # refused for its form on one port, on the other for no path that the ticket is for: 400, 403
        target = path.format(**names)
        if who == "by ticket" and "ticket=" not in target:
            target += f"{'&' if '?' in target else '?'}ticket={ticket}"
        lines = [f"{method} {target} HTTP/1.1", "Host: my.example", *[field.format(**names) for field in fields]]
        if credential is not None:
            lines.append(f"Authorization: Bearer {credential}")
        if not any(field.startswith("Connection") for field in fields):
            lines.append("Connection: close")
        answers = []
        for port in (stack.port, lane.port):
            with Wire(port) as wire:
                wire.send("\r\n".join([*lines, "", ""]).encode())
                answers.append(told(wire.read(head_only=method == "HEAD")))
        if answers[0] != answers[1]:
            wrong.append((who, method, path, fields, *answers))
    assert not wrong, "\n".join(map(str, wrong))
