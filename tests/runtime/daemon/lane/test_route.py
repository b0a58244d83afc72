"""Which box a head is for, read from its bytes alone."""

from __future__ import annotations

import pytest

from tunnel.daemon.lane.route import NOBODY, LaneRequest, is_lane_path, read
from tunnel.http import ProxyError, RequestHead

DEVICE = "0190a0a0-0000-7000-8000-00000000000a"
OTHER = "0190a0a0-0000-7000-8000-00000000000b"
UPGRADE = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]


def asked(target: str, *fields: tuple[bytes, bytes]) -> LaneRequest:
    """A GET, read."""
    return read(RequestHead.unchecked(b"GET", target.encode(), [(b"Host", b"h"), *fields], http11=True))


@pytest.mark.parametrize(
    ("target", "device", "mount", "path"),
    [
        (f"/d/{DEVICE}/a?b", DEVICE, f"/d/{DEVICE}", "/a"),
        (f"/d/{DEVICE.upper()}", DEVICE, f"/d/{DEVICE.upper()}", "/"),
        (f"/d/{DEVICE}?a=/b", DEVICE, f"/d/{DEVICE}", "/"),
        ("/d/x/a", NOBODY, "/d/x", "/a"),
        ("/d/", NOBODY, "/d/", "/"),
        (f"/api/devices/{DEVICE}/proxy", DEVICE, f"/api/devices/{DEVICE}/proxy", "/"),
        (f"/api/devices/{DEVICE}/proxy?x", DEVICE, f"/api/devices/{DEVICE}/proxy", "/"),
        (f"/api/devices/{DEVICE}/proxy//a/%2F?x", DEVICE, f"/api/devices/{DEVICE}/proxy", "//a/%2F"),
        (f"/api/devices/%30{DEVICE[1:]}/proxy/a", DEVICE, f"/api/devices/%30{DEVICE[1:]}/proxy", "/a"),
        ("/api/devices/scan/proxy/a", NOBODY, "/api/devices/scan/proxy", "/a"),
        (f"/api/devices/{DEVICE}/proxy/a?device_id={OTHER}", DEVICE, f"/api/devices/{DEVICE}/proxy", "/a"),
        ("/api/cameras", "", "", "/api/cameras"),
        (f"/api/inference/run?device_id={DEVICE.upper()}", DEVICE, "", "/api/inference/run"),
        ("/api/cameras/0?device_id=cam", "", "", "/api/cameras/0"),
        (f"/ws/a?device_id={DEVICE}", DEVICE, "", "/ws/a"),
    ],
)
def test_what_a_target_asks_for(target: str, device: str, mount: str, path: str) -> None:
    found = asked(target)
    assert (found.device, found.mount) == (device, mount.encode())
    assert found.request("node", "192.0.2.1", "id")["path"] == path
    assert found.lacks_upgrade is target.startswith("/ws/")
    assert not asked(target, *UPGRADE).lacks_upgrade
    assert is_lane_path(target.partition("?")[0])


@pytest.mark.parametrize(
    "target",
    [
        "/", "/d", "/ws", "/api/camerasx", "/api/cameras%3Fx", "/api//cameras/0", "//api/cameras/0",
        f"/api/devices/{DEVICE}", f"/api/devices/{DEVICE}/proxyx", f"/api/devices/{DEVICE}/x/proxy",
        "/api/devices/scan", "/api/devices//proxy", f"/api/clusters/{DEVICE}/proxy/x", "/internal/authorize",
        "/api/auth/login?x=/api/cameras/",
    ],
)  # fmt: skip
def test_what_is_no_route_of_this_lane(target: str) -> None:
    with pytest.raises(ProxyError) as refused:
        asked(target)
    assert refused.value.code == "NOT_FOUND"
    assert not is_lane_path(target.partition("?")[0])


@pytest.mark.parametrize("target", [f"/api/%64evices/{DEVICE}/proxy/x", f"/api/devices/{DEVICE}%2Fproxy/x"])
def test_a_mount_in_disguise_is_asked_about_and_is_no_prefix_of_the_path(target: str) -> None:
    """So the owner is told that it is malformed, and a stranger no more than elsewhere."""
    found = asked(target)
    assert found.device == DEVICE
    assert not target.encode().startswith(found.mount)
    assert found.request("node", "192.0.2.1", "id")["path"].startswith("/")


@pytest.mark.parametrize(
    ("values", "device", "by_ticket"),
    [
        ([], OTHER, OTHER),
        ([DEVICE], DEVICE, DEVICE),
        ([f" {DEVICE.upper()} "], DEVICE, DEVICE),
        (["x"], NOBODY, NOBODY),
        ([""], NOBODY, ""),  # a ticket names its own device
        ([DEVICE, DEVICE], NOBODY, NOBODY),
    ],
)
def test_the_device_that_a_field_names_wins(values: list[str], device: str, by_ticket: str) -> None:
    fields = [(b"x-device-ID", value.encode()) for value in values]
    target = f"/api/cameras/0?device_id={OTHER}&ticket=t"
    assert asked(target, (b"Authorization", b"Bearer a"), *fields).device == device
    shown = asked(target, *fields)
    assert (shown.kind, shown.token, shown.device) == (b"ticket", "t", by_ticket)
