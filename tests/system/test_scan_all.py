"""`/api/devices/scan?device_id=all`: every online device at once, and what fails costs its own result alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.apps.proxy.kit import Box, Got, Peer
from tests.apps.proxy.stack import Lane, Stack, add_device, add_user, log_in, put_online
from tests.apps.proxy.stand_in import StandInDaemon

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]


def answers(*serials: str) -> Callable[[Peer], bool]:
    found = {"devices": [{"serial": serial, "chip": "KL720", "status": "ready"} for serial in serials]}

    def script(peer: Peer) -> bool:
        peer.answer(json.dumps(found).encode())
        return True

    return script


@pytest.fixture
def more(stack: Stack, lane: Lane) -> Iterator[Callable[[], tuple[str, Box]]]:
    """A function that brings a further box of the lane's user online: its device's id, and the box."""
    with ExitStack() as closing:

        def add() -> tuple[str, Box]:
            box = Box()
            closing.callback(box.close)
            daemon = StandInDaemon(box.port)
            closing.callback(daemon.close)
            device = add_device(stack, lane.user_id)
            put_online(device, lane.user_id, daemon, node=f"node-{device}")
            return device, box

        yield add


def results(got: Got) -> dict[str, dict[str, Any]]:
    assert got.status == 200, got.body
    assert got.json["success"] is True
    assert list(got.json["data"]) == ["results"]
    return {one["device_id"]: one for one in got.json["data"]["results"]}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_each_device_has_its_own_result(
    lane: Lane, stack: Stack, more: Callable[[], tuple[str, Box]], method: str
) -> None:
    offline = add_device(stack, lane.user_id)
    (second, second_box), (broken, broken_box), (gone, gone_box) = more(), more(), more()
    lane.box.on("/api/devices/scan", answers("A-1", "A-2"))
    second_box.on("/api/devices/scan", answers())
    broken_box.on("/api/devices/scan", lambda peer: peer.answer(b"{}", "500 Broken"))
    gone_box.close()
    found = results(lane.ask(method, "/api/devices/scan?device_id=all", prefix=""))
    assert set(found) == {lane.device_id, second, broken, gone}
    assert offline not in found
    assert [one["serial"] for one in found[lane.device_id]["accelerators"]] == ["A-1", "A-2"]
    assert found[second] == {"device_id": second, "ok": True, "accelerators": []}
    for device, code in ((broken, "AGENT_BAD_RESPONSE"), (gone, "AGENT_UNREACHABLE")):
        one = found[device]
        assert (one["ok"], one["accelerators"]) == (False, [])
        assert one["error"]["code"] == code
        assert one["error"]["message"]
    assert {head.split(b" ")[0].decode() for head in lane.box.heads} == {method}
    rows = stack.rows("SELECT serial FROM accelerators WHERE device_id = %s ORDER BY serial", lane.device_id)
    assert rows == [("A-1",), ("A-2",)]


def test_boxes_are_asked_at_once(lane: Lane, more: Callable[[], tuple[str, Box]]) -> None:
    """None answers before all were asked."""
    everyone = threading.Barrier(3)

    def together(peer: Peer) -> bool:
        everyone.wait(30)
        return answers("X")(peer)

    for box in (lane.box, more()[1], more()[1]):
        box.on("/api/devices/scan", together)
    found = results(lane.ask("POST", "/api/devices/scan?device_id=all", prefix=""))
    assert [one["ok"] for one in found.values()] == [True, True, True]


def test_with_none_online_there_is_nothing_to_tell(lane: Lane, stack: Stack) -> None:
    lane.token = log_in(add_user(stack))
    assert results(lane.ask("GET", "/api/devices/scan?device_id=all", prefix="")) == {}


def test_others_boxes_are_not_asked(lane: Lane, stack: Stack, more: Callable[[], tuple[str, Box]]) -> None:
    bob = add_user(stack)
    lane.token = log_in(bob)
    assert results(lane.ask("GET", "/api/devices/scan?device_id=all", prefix="")) == {}
    assert lane.box.heads == []
    lane.token = ""
    assert lane.ask("GET", "/api/devices/scan?device_id=all", prefix="").code == "UNAUTHENTICATED"


def test_one_named_by_its_header_is_meant_alone(lane: Lane, more: Callable[[], tuple[str, Box]]) -> None:
    more()
    got = lane.ask("GET", "/api/devices/scan?device_id=all", f"X-Device-Id: {lane.device_id}", prefix="")
    assert got.json["line"].startswith("GET /api/devices/scan")


def test_all_and_one_is_refused(lane: Lane) -> None:
    got = lane.ask("GET", f"/api/devices/scan?device_id=all&device_id={lane.device_id}", prefix="")
    assert (got.status, list(got.json["error"]["details"])) == (400, ["device_id"])
