"""Upgraded connections on the fast lane: `/ws/*` and `/d/{device_id}/…`."""

from __future__ import annotations

import pytest
import trio

from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, box, fast_world, ok

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def mirror(wire: Wire) -> None:
    """Switches, sends all back, and ends when the other side has."""
    head = await wire.head()
    assert head is not None
    assert b"Upgrade: websocket" in head
    await wire.send(SWITCH)
    while data := wire.buffer or await wire.stream.receive_some():
        wire.buffer = b""
        await wire.send(data)
    await wire.send(b"bye")


@pytest.mark.parametrize("target", [f"/d/{DEVICE}/ws/x", f"/ws/x?device_id={DEVICE}"])
async def test_bytes_go_both_ways_and_half_closes_pass(target: str) -> None:
    async with fast_world() as w:
        await box(w, mirror)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET {target}", *UPGRADE, "Origin: http://page.example", body=b"early")
            assert (await visitor.read_head()).status == 101
            await visitor.until(b"early")
            await visitor.stream.send_all(b"z" * 1_000_000)
            await visitor.until(b"z" * 1_000_000)
            visitor.stream.send_eof()
            await visitor.until(b"bye")
            assert await visitor.end() == "end"
        asked = w.control.authorizations[0]
        assert (asked["websocket"], asked["origin"], asked["device"]) == (True, "http://page.example", DEVICE)
        line = w.logged("forward")[0]
        assert (line["outcome"], line["status"]) == ("ok", 101)
        with trio.fail_after(1):
            await w.until(lambda: not w.daemon.parts.sessions.all()[0].connection.streams)


async def test_the_header_selects_before_the_query() -> None:
    async with fast_world() as w:
        await box(w, mirror)
        other = DEVICE[:-1] + "b"
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /ws/x?device_id={other}", *UPGRADE, f"X-Device-Id: {DEVICE}")
            assert (await visitor.read_head()).status == 101


async def test_without_an_upgrade() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for _ in range(2):
                got = await visitor.ask(f"GET /ws/x?device_id={DEVICE}")
                assert (got.status, got.code, got.all("upgrade")) == (426, "UPGRADE_REQUIRED", ["websocket"])
            got = await visitor.ask(f"GET /ws/x?device_id={DEVICE}&ticket=t", token="")
            assert got.status == 426
        assert [one["kind"] for one in w.control.authorizations] == ["bearer"]  # the ticket is not spent for that


async def test_a_refusal_comes_before_the_upgrade_as_json() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        w.control.forbid = {"status": 403, "code": "FORBIDDEN", "message": "no"}
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /ws/x?device_id={DEVICE}", *UPGRADE)
            assert (got.status, got.code) == (403, "FORBIDDEN")


async def test_a_box_that_does_not_switch() -> None:
    async with fast_world() as w:
        await box(w, ok(b"no socket here"))
        async with Visitor(w) as visitor:
            for _ in range(2):
                got = await visitor.ask(f"GET /d/{DEVICE}/x", *UPGRADE)
                assert (got.status, got.body) == (200, b"no socket here")


async def test_a_reset_is_a_reset_both_ways() -> None:
    async with fast_world() as w:
        ends: list[str] = []

        async def switch(wire: Wire) -> None:
            head = await wire.head()
            await wire.send(SWITCH)
            if head is not None and b"/break" in head:
                await wire.stream.receive_some()
                wire.stream.reset()
            else:
                ends.append(await wire.gone())

        await box(w, switch)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/break", *UPGRADE)
            await visitor.read_head()
            await visitor.stream.send_all(b"go")
            assert await visitor.end() == "reset"
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/x", *UPGRADE)
            await visitor.read_head()
            visitor.stream.reset()
            await w.until(lambda: ends)
        assert ends == ["reset"]


async def test_an_idle_one_is_ended() -> None:
    async with fast_world(upgraded_idle_seconds=0.5) as w:
        await box(w, mirror)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/x", *UPGRADE)
            await visitor.read_head()
            assert await visitor.end() == "reset"
