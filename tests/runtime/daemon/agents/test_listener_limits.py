"""Agents at the public port in crowds: slow heads, storms, bounds; and what the settings and proxies say of them."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.runtime.daemon.daemonworld import OTHER, TOKEN, dial, parse, read_all, world
from tests.runtime.daemon.refusals import code_of, refused
from tunnel.contract import SettingError
from tunnel.daemon.agents.head import agent_of, local_of
from tunnel.daemon.config import TunnelConfig, load
from tunnel.daemon.http.accept import Slots
from tunnel.daemon.http.forwarded import client_address
from tunnel.daemon.http.messages import Request


async def test_a_dripping_head_is_408() -> None:
    async with world(head_seconds=0.4) as w:
        stream = await dial(w.public)
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                try:
                    for byte in b"GET /tunnel/connect HTTP/1.1\r\n" * 100:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.05)
                except trio.BrokenResourceError:
                    return

            nursery.start_soon(drip)
            answer = b""
            try:
                while more := await stream.receive_some():
                    answer += more
            except trio.BrokenResourceError:
                pass
            assert parse(answer)[0] == 408
            nursery.cancel_scope.cancel()


async def test_a_crowd_of_slow_heads_pushes_out_itself() -> None:
    async with world(max_handshakes=4) as w:
        slow = [await dial(w.public) for _ in range(8)]
        for stream in slow:
            await stream.send_all(b"GET /tunnel/conn")
        _, answer = await w.agent()
        assert "x-visiona-device-id" in answer
        told = parse(await read_all(slow[0]))
        assert (told[0], told[2]["error"]["code"]) == (408, "REQUEST_TIMEOUT")


async def test_more_handshakes_than_allowed_are_503() -> None:
    async with world(max_handshakes=2, queue_seconds=0.1) as w:
        w.control.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.agent, TOKEN)
            nursery.start_soon(w.agent, OTHER)
            await w.until(lambda: w.daemon.handshakes == 2)
            refusal = await refused(w)
            assert (refusal.status, code_of(refusal), refusal.header("Retry-After")) == (503, "OVERLOADED", "1")
            w.control.hold.set()
        assert w.daemon.handshakes == 0  # held sessions need no slot


async def test_a_storm_waits_its_turn_and_is_not_refused() -> None:
    async with world(max_handshakes=4) as w:
        async with trio.open_nursery() as nursery:
            for number in range(36):
                nursery.start_soon(w.agent, f"vAs_{number:032x}")
        assert not w.logged("connect_refused")
        connected = [line["session"] for line in w.logged("connect")]
        assert len(set(connected)) == 36
        assert w.daemon.handshakes == 0


async def test_the_queue_for_a_slot_is_bounded() -> None:
    slots = Slots(1, wait_seconds=5)
    assert await slots.enter(trio.CancelScope(), "192.0.2.1")
    results: list[bool] = []

    async def enter() -> None:
        results.append(await slots.enter(trio.CancelScope(), "192.0.2.1"))

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(enter)
        await trio.testing.wait_all_tasks_blocked()
        assert results == [False]
        nursery.cancel_scope.cancel()
    assert slots.taken == 1


async def test_a_crowd_from_one_address_keeps_its_own_waiting() -> None:
    slots, crowd, came = Slots(2, wait_seconds=5), [trio.CancelScope() for _ in range(12)], []

    async def enter(scope: trio.CancelScope, address: str) -> None:
        if await slots.enter(scope, address):
            came.append(address)

    async with trio.open_nursery() as nursery:
        for scope in crowd:
            nursery.start_soon(enter, scope, "192.0.2.1")
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(enter, trio.CancelScope(), "192.0.2.2")
        await trio.testing.wait_all_tasks_blocked()
        slots.leave(crowd[0])
        await trio.testing.wait_all_tasks_blocked()
        assert came == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]
        nursery.cancel_scope.cancel()
    assert slots.taken == 2


@pytest.mark.parametrize("crowd", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::{:x}"])
async def test_a_crowd_s_slots_go_by_its_network(crowd: str) -> None:
    """Whoever holds a /64 has as many slots as whoever holds one address of IPv4."""
    slots, came = Slots(2, wait_seconds=5), []

    async def enter(scope: trio.CancelScope, address: str) -> None:
        if await slots.enter(scope, address):
            came.append(address)

    async with trio.open_nursery() as nursery:
        held = [trio.CancelScope() for _ in range(12)]
        for number, scope in enumerate(held):
            nursery.start_soon(enter, scope, crowd.format(number))
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(enter, trio.CancelScope(), "192.0.2.2")
        await trio.testing.wait_all_tasks_blocked()
        slots.leave(held[0])
        await trio.testing.wait_all_tasks_blocked()
        assert came[2:] == ["192.0.2.2"]
        nursery.cancel_scope.cancel()


async def test_behind_an_honest_one_the_next_is_hurried(autojump_clock: trio.testing.MockClock) -> None:
    """The oldest sent its head in time, so that it goes for nobody: the slow one behind it must."""
    slots, honest, slow = Slots(2, wait_seconds=5), trio.CancelScope(), trio.CancelScope(deadline=100)
    assert await slots.enter(honest, "192.0.2.1")
    assert await slots.enter(slow, "192.0.2.2")
    came = []

    async def enter() -> None:
        came.append(await slots.enter(trio.CancelScope(), "192.0.2.3"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter)
        await trio.testing.wait_all_tasks_blocked()
        assert (honest.deadline, slow.deadline) == (1, 100)
        slots.head_read(honest)
        assert slow.deadline == 1
        slots.leave(slow)
        await trio.testing.wait_all_tasks_blocked()
        assert came == [True]


async def test_more_sessions_than_allowed_are_503() -> None:
    async with world(max_sessions=1) as w:
        await w.agent()
        refusal = await refused(w, OTHER)
        assert (refusal.status, code_of(refusal)) == (503, "OVERLOADED")


@pytest.mark.parametrize(
    "value,agent,features",
    [
        (None, "", []),
        ("", "", []),
        ("box", "box", []),
        ("visiona-agent/1.2.3; features=a,b", "visiona-agent/1.2.3", ["a", "b"]),
        ("x/1;features=A, b ,a;other=1", "x/1", ["a", "b"]),
        ("x/1; features=ok,not ok,<b>", "x/1", ["ok"]),
        ("x/1; features=" + ",".join(f"f{i}" for i in range(99)), "x/1", [f"f{i}" for i in range(16)]),
        ("bad name/1; features=a", "", []),
        ("x/" + "9" * 65, "", []),
    ],
)
def test_what_an_agent_says_of_itself(value: str | None, agent: str, features: list[str]) -> None:
    assert agent_of(value) == (agent, features)


@pytest.mark.parametrize(
    ("value", "local"),
    [
        ("127.0.0.1:8080; listening=yes", ("127.0.0.1:8080", True)),
        ("127.0.0.1:8080; listening=no", ("127.0.0.1:8080", False)),
        ("127.0.0.1:8080", ("127.0.0.1:8080", None)),
        ("[::1]:80; listening=no", ("[::1]:80", False)),
        ("box-1.lan:80; listening=no; more=1", ("", None)),
        ("<b>:80", ("", None)),
        ("a" * 300 + ":80", ("", None)),
        ("nothing", ("", None)),
        (None, ("", None)),
    ],
)
def test_what_an_agent_says_of_its_local_address(value: str | None, local: tuple[str, bool | None]) -> None:
    assert local_of(value) == local


@pytest.mark.parametrize(
    "peer,forwarded,address",
    [
        ("203.0.113.9", "1.2.3.4", "203.0.113.9"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "1.2.3.4, 10.0.0.7", "1.2.3.4"),
        ("10.0.0.1", "garbage", "10.0.0.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
    ],
)
def test_whose_address_it_is(peer: str, forwarded: str | None, address: str) -> None:
    fields = (("x-forwarded-for", forwarded),) if forwarded else ()
    request = Request("GET", "/", {}, fields, "r", b"")
    trusted = load({"VISIONA_TRUSTED_PROXIES": "10.0.0.0/8"})[0].trusted_proxies
    assert client_address(peer, request, trusted) == address


def test_the_settings() -> None:
    config, warnings = load(
        {"VISIONA_YAMUX_ROLE": "server", "VISIONA_TUNNEL_PROT": "1", "VISIONA_TUNNEL_BUFFER_MB": "16"}
    )
    assert (config.role, config.buffer_bytes, config.public_host) == ("server", 16 << 20, "127.0.0.1")
    assert warnings == ["VISIONA_TUNNEL_PROT: unknown setting; the nearest known one is VISIONA_TUNNEL_PORT"]
    _, warnings = load({"VISIONA_API_LONG_EXCHANGES": "48", "VISIONA_ENV_STRICT": "true"})  # of the release before
    assert warnings == ["VISIONA_API_LONG_EXCHANGES: not used any more: an exchange that lasts holds no thread"]
    secret = {"VISIONA_ENV": "production", "VISIONA_INTERNAL_SECRET": "x" * 32}
    assert load(secret)[0].public_host == "0.0.0.0"
    assert TunnelConfig(drain_seconds=1).interrupt_grace == 1


@pytest.mark.parametrize(
    "environ,name",
    [
        ({"VISIONA_TUNNEL_PORT": "x"}, "VISIONA_TUNNEL_PORT"),
        ({"VISIONA_TRUSTED_PROXIES": "10.0.0.0/99"}, "VISIONA_TRUSTED_PROXIES"),
        ({"VISIONA_INTERNAL_SECRET": " , "}, "VISIONA_INTERNAL_SECRET"),
        ({"VISIONA_ENV": "production"}, "VISIONA_INTERNAL_SECRET"),
        ({"VISIONA_ENV_STRICT": "true", "VISIONA_X": "1"}, "VISIONA_X"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(environ: dict[str, str], name: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(environ)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
