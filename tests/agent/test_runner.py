"""The agent's life on a virtual clock: what it does after each kind of end, and how it ends itself."""

from __future__ import annotations

import itertools
import json
import logging
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.ports import free_port
from tunnel.agent import credentials
from tunnel.agent.addresses import AddressError, Endpoint, parse_local, parse_url
from tunnel.agent.backoff import Backoff
from tunnel.agent.credentials import AgentBusyError, Credentials
from tunnel.agent.dial import DialError
from tunnel.agent.link import Admission, Link, RefusedError
from tunnel.agent.runner import Agent, UsageError
from tunnel.agent.settings import AgentSettings
from tunnel.agent.verdict import after_foreign_answer, after_refusal

PAIRING, NEW_PAIRING, SESSION = "vAc_" + "1" * 32, "vAc_" + "2" * 32, "vAs_" + "3" * 32


class ScriptedTransport:
    """A WebSocket that stays silent for `seconds`, then ends with `code`; 0 seconds: it never ends by itself."""

    def __init__(self, code: int | None = None, seconds: float = 0.0, first: bytes = b"") -> None:
        self.close_code: int | None = None
        self.close_reason = ""
        self.code, self.seconds, self.first = code, seconds, first
        self.sent = bytearray()
        self.closed_with: tuple[int, str] | None = None
        self._closed = trio.Event()

    async def receive_some(self) -> bytes:
        if self.first:
            data, self.first = self.first, b""
            return data
        if not self.seconds:
            await self._closed.wait()
            raise trio.ClosedResourceError
        await trio.sleep(self.seconds)
        self.close_code, self.close_reason = self.code, "test"
        if self.code is None or self.code == 1006:
            self.close_code = 1006
            raise trio.BrokenResourceError("vanished")
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data

    def try_send(self, data: bytes | bytearray | memoryview) -> bool:
        return False

    def unsent(self) -> int | None:
        return None

    bytes_in = 0

    def kernel_socket(self) -> None:
        return None

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self.closed_with = self.closed_with or (code, reason)
        self._closed.set()
        await trio.lowlevel.checkpoint()


Step = ScriptedTransport | Exception


class ScriptedLink(Link):
    """What each attempt meets, and when it was made with which token."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = deque(steps)
        self.attempts: list[tuple[float, str]] = []
        self.local_facts: list[str] = []
        self.instances: list[str] = []
        self.session_token: str | None = None
        self.used_up = trio.Event()
        self.proxy = None
        self.stored = True  # the file can be written, and must hold what is dialled with

    def __call__(self, settings: AgentSettings, endpoint: Endpoint, environ: Mapping[str, str]) -> ScriptedLink:
        self.settings, self.endpoint = settings, endpoint
        return self

    async def connect(self, stored: Credentials, token: str, *, handover: str = "", local: str = "") -> Admission:
        self.attempts.append((trio.current_time(), token))
        self.local_facts.append(local)
        if self.stored:
            assert credentials.load(self.settings.credentials) == replace(stored), "dialled before it was stored"
        self.instances.append(stored.instance)
        await trio.lowlevel.checkpoint()
        if not self.steps:
            self.used_up.set()
            await trio.sleep_forever()
        step = self.steps.popleft()
        if isinstance(step, Exception):
            raise step
        return Admission(step, token, "session-1", "device-1", self.session_token, "req_1")

    def waits(self) -> list[float]:
        times = [at for at, _ in self.attempts]
        return [round(after - before, 3) for before, after in itertools.pairwise(times)]


def refused(status: int, retry_after: float | None = None) -> RefusedError:
    return RefusedError(status, after_refusal(status, "CODE", "text", retry_after))


@pytest.fixture
def told(tmp_path: Path) -> AgentSettings:
    return AgentSettings(
        endpoint=parse_url("ws://daemon.test"),
        local=parse_local("127.0.0.1:1"),
        pairing_token=PAIRING,
        credentials=tmp_path / "c.json",
        ca_file=None,
        serial="",
        chip="",
        firmware="",
        yamux_role="server",
        log_level="info",
    )


def agent_for(told: AgentSettings, link: ScriptedLink, draw: float = 1.0) -> Agent:
    return Agent(told, {}, Backoff(draw=lambda: draw), link)


async def run_until_idle(agent: Agent, link: ScriptedLink) -> int | None:
    """Run until the steps are used up and one more attempt was made, or the agent ended: its exit code."""
    code: int | None = None

    async def watch() -> None:
        await link.used_up.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        code = await agent.run()
        nursery.cancel_scope.cancel()
    return code


async def test_boots_before_the_network_is_up_and_backs_off(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    link = ScriptedLink([DialError("Network is unreachable")] * 8)
    assert await run_until_idle(agent_for(told, link), link) is None
    assert link.waits() == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert len(set(link.instances)) == 1


async def test_a_year_of_failures_ends_nothing(told: AgentSettings, autojump_clock: trio.testing.MockClock) -> None:
    failures: list[Step] = [DialError("no route"), refused(500), refused(404), refused(503), refused(429)]
    link = ScriptedLink([*failures * 40, ScriptedTransport(1000, 1.0)])
    assert await run_until_idle(agent_for(told, link, draw=0.5), link) is None
    assert len(link.attempts) == 202


@pytest.mark.parametrize(
    ("code", "wait"),
    [(1012, 2.0), (1001, 2.0), (1006, 0.5), (None, 0.5), (4408, 0.5), (4409, 30.5), (4429, 30.5), (1000, 0.5)],
)
async def test_after_each_close_code(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, code: int | None, wait: float
) -> None:
    link = ScriptedLink([ScriptedTransport(code, 5.0)])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert link.waits() == [pytest.approx(5.0 + wait)]


REFUSALS = [4401, 4403, 401, 403]


def refusal(code: int) -> Step:
    return refused(code) if code < 1000 else ScriptedTransport(code, 5.0)


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_ends_nothing_and_it_says_so(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    lasted = 0.0 if code < 1000 else 5.0
    states: list[dict[str, Any] | None] = []

    async def look() -> None:
        await trio.sleep(lasted + 30)
        states.append(credentials.read_state(told.credentials))

    link = ScriptedLink([refusal(code) for _ in range(9)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        assert await run_until_idle(agent_for(told, link, draw=0.0), link) is None
    assert link.waits() == [lasted + each for each in (60, 120, 240, 480, 960, 1920, 3000, 3000, 3000)]
    lines = [r for r in caplog.records if str(code) in r.getMessage() and r.levelno == logging.ERROR]
    assert len(lines) == 9
    (state,) = states
    assert state is not None
    assert (state["phase"], state["next_attempt_in"]) == ("refused", 60.0)
    assert str(code) in state["last_error"]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_ends_it_where_that_is_wanted(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, code: int
) -> None:
    link = ScriptedLink([refused(503), refusal(code)])
    assert await run_until_idle(agent_for(replace(told, exit_on_refusal=True), link), link) == 3
    assert len(link.attempts) == 2
    state = credentials.read_state(told.credentials)
    assert state is not None
    assert state["phase"] == "stopped"
    assert str(code) in state["last_error"]


@pytest.mark.parametrize("status", [401, 403, 407, 511])
async def test_what_another_server_says_is_no_refusal(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, status: int
) -> None:
    foreign = RefusedError(status, after_foreign_answer(status))
    link = ScriptedLink([foreign] * 8)
    assert await run_until_idle(agent_for(replace(told, exit_on_refusal=True), link), link) is None
    assert link.waits() == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_new_pairing_token_in_the_settings_file_is_tried_at_once(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, tmp_path: Path, code: int
) -> None:
    file = tmp_path / "agent.env"
    file.write_text(f"AGENT_PAIRING_TOKEN={PAIRING}\n")
    link = ScriptedLink([*(refusal(code) for _ in range(6)), ScriptedTransport(1006, 10.0)])

    async def pair_anew() -> None:
        await trio.sleep(2000)
        file.write_text(f"AGENT_PAIRING_TOKEN={NEW_PAIRING}\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair_anew)
        assert await run_until_idle(agent_for(replace(told, token_file=file), link, draw=0.0), link) is None
    before, after = link.attempts[-3:-1]
    assert before[1] == PAIRING
    assert after[1] == NEW_PAIRING
    assert 2000 <= after[0] - link.attempts[0][0] < 2006


async def test_a_box_that_takes_turns_with_its_copy(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    link = ScriptedLink([ScriptedTransport(4409, 30.0) for _ in range(5)])
    assert await run_until_idle(agent_for(told, link, draw=0.0), link) is None
    assert link.waits() == [60.0, 60.0, 90.0, 150.0, 150.0]
    assert "3 times" in next(r.getMessage() for r in caplog.records if "cloned card" in r.getMessage())


async def test_retry_after_is_honoured(told: AgentSettings, autojump_clock: trio.testing.MockClock) -> None:
    link = ScriptedLink([refused(503, 17.0), refused(429, 3.0)])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert link.waits() == [17.5, 4.0]


async def test_a_stable_minute_starts_the_series_anew(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    short, longer = ScriptedTransport(1006, 10.0), ScriptedTransport(1000, 30.0)
    link = ScriptedLink([DialError("x"), DialError("x"), short, DialError("x"), longer, DialError("x")])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert link.waits() == [0.5, 1.0, 10 + 2.0, 4.0, 30 + 8.0, 16.0]
    long = _Chatty(90.0)
    link = ScriptedLink([DialError("x"), DialError("x"), long, DialError("x")])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert link.waits() == [0.5, 1.0, pytest.approx(90.5), 1.0]


class _Chatty(ScriptedTransport):
    """Pings every 10 s for `seconds`, then vanishes."""

    def __init__(self, seconds: float) -> None:
        super().__init__(1006, 10.0)
        self.left = seconds

    async def receive_some(self) -> bytes:
        await trio.sleep(10)
        self.left -= 10
        if self.left <= 0:
            self.close_code = 1006
            raise trio.BrokenResourceError("vanished")
        return b"\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01"


async def test_a_link_that_died_silently_is_replaced_within_forty_seconds(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    silent = ScriptedTransport()
    link = ScriptedLink([silent])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert link.waits()[0] <= 41.0
    assert silent.sent[:4] == b"\x00\x02\x00\x01", "it never pinged"
    assert silent.closed_with is not None
    assert silent.closed_with[0] == 4408


async def test_the_session_token_is_stored_before_anything_is_served(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    transport = ScriptedTransport(1006, 1.0)
    link = ScriptedLink([transport])
    link.session_token = SESSION
    stored_when_read: list[str] = []
    receive = transport.receive_some

    async def spy() -> bytes:
        found = credentials.load(told.credentials)
        assert found is not None
        stored_when_read.append(found.session_token)
        return await receive()

    transport.receive_some = spy  # type: ignore[method-assign]  # of this one object
    assert await run_until_idle(agent_for(told, link), link) is None
    assert stored_when_read[0] == SESSION
    assert [token for _, token in link.attempts] == [PAIRING, SESSION]


async def test_later_runs_need_neither_token_nor_url(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    link = ScriptedLink([ScriptedTransport(1006, 1.0)])
    link.session_token = SESSION
    assert await run_until_idle(agent_for(told, link), link) is None
    again = ScriptedLink([ScriptedTransport(1006, 1.0)])
    assert await run_until_idle(agent_for(replace(told, endpoint=None, pairing_token=""), again), again) is None
    assert [token for _, token in again.attempts] == [SESSION, SESSION]
    assert again.endpoint.url == "ws://daemon.test/tunnel/connect"
    assert again.instances[0] == link.instances[0]


async def test_a_new_pairing_token_goes_first_and_a_stale_one_does_not_lock_the_box_out(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    credentials.store(told.credentials, Credentials("i", SESSION, "d", "u", credentials.fingerprint(PAIRING)))
    link = ScriptedLink([refused(401), ScriptedTransport(1006, 1.0), ScriptedTransport(1006, 1.0)])
    agent = agent_for(replace(told, pairing_token=NEW_PAIRING), link)
    assert await run_until_idle(agent, link) is None
    # The refused one is not tried again at each reconnect
    assert [token for _, token in link.attempts] == [NEW_PAIRING, SESSION, SESSION, SESSION]


async def test_when_every_token_is_refused(told: AgentSettings, autojump_clock: trio.testing.MockClock) -> None:
    credentials.store(told.credentials, Credentials("i", SESSION, "d", "u", credentials.fingerprint(PAIRING)))
    link = ScriptedLink([refused(401), refused(403), refused(401), refused(401)])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert [token for _, token in link.attempts] == [SESSION, PAIRING, PAIRING, SESSION, SESSION]
    assert link.waits()[1] >= 60


@pytest.mark.parametrize("content", ["", '{"instance": "i", "session_tok'])
async def test_a_damaged_file_keeps_nobody_from_pairing_anew(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    told.credentials.write_text(content)
    link = ScriptedLink([ScriptedTransport(1006, 1.0)])
    link.session_token = SESSION
    assert await run_until_idle(agent_for(told, link), link) is None
    assert [token for _, token in link.attempts] == [PAIRING, SESSION]
    assert told.credentials.with_name("c.json.bad").read_text() == content
    assert any("pairing anew" in r.getMessage() for r in caplog.records)


async def test_a_damaged_file_without_a_token_is_left_where_it_is(told: AgentSettings) -> None:
    told.credentials.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        await agent_for(replace(told, pairing_token=""), ScriptedLink([])).run()
    assert told.credentials.read_text() == "{"


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written, as on a read-only file system (root may write whatever its mode says)."""

    def fail(path: Path, *_: object, **__: object) -> None:
        raise credentials.CredentialError(f"{path}: cannot be written: Read-only file system")

    monkeypatch.setattr("tunnel.agent.runner.store", fail)
    monkeypatch.setattr("tunnel.agent.runner.write_state", fail)


@pytest.mark.usefixtures("read_only")
async def test_a_read_only_file_system_keeps_nobody_from_connecting(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    link = ScriptedLink([_Chatty(300.0), ScriptedTransport(1006, 1.0)])
    link.session_token, link.stored = SESSION, False
    assert await run_until_idle(agent_for(told, link), link) is None
    assert [token for _, token in link.attempts] == [PAIRING, SESSION, SESSION]
    assert len(set(link.instances)) == 1
    told_once = [r.getMessage() for r in caplog.records if "Read-only" in str(r.__dict__.get("facts"))]
    assert len([line for line in told_once if "in memory" in line]) == 1, told_once


@pytest.mark.usefixtures("read_only")
async def test_a_rotated_token_that_cannot_be_stored_is_not_used(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    """Its first use would end the one on disk, and a restart would find a dead one."""
    stored = Credentials("i", SESSION, "d", "ws://daemon.test/tunnel/connect")
    told.credentials.write_text(json.dumps(asdict(stored)))
    link = ScriptedLink([ScriptedTransport(1006, 1.0)] * 2)
    link.session_token = "vAs_" + "4" * 32
    assert await run_until_idle(agent_for(replace(told, pairing_token=""), link), link) is None
    assert [token for _, token in link.attempts] == [SESSION] * 3


async def test_the_local_address_is_looked_at(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    settings = replace(told, local=parse_local(f"127.0.0.1:{port}"))
    link = ScriptedLink([DialError("x")] * 2)
    assert await run_until_idle(agent_for(settings, link), link) is None
    assert link.local_facts == [f"127.0.0.1:{port}; listening=no"] * 3
    assert len([r for r in caplog.records if "nothing answers" in r.getMessage()]) == 1
    state = credentials.read_state(told.credentials)
    assert state is not None
    assert state["local_answers"] is False
    with socket.create_server(("127.0.0.1", port)):
        link = ScriptedLink([DialError("x")])
        assert await run_until_idle(agent_for(settings, link), link) is None
    assert link.local_facts == [f"127.0.0.1:{port}; listening=yes"] * 2


async def test_a_full_disk_does_not_keep_the_box_away(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = _Chatty(90.0)
    link = ScriptedLink([transport])
    link.session_token = SESSION
    agent = agent_for(told, link)
    real, failures = credentials.store, [0]

    def store(path: Path, found: Credentials) -> None:
        if found.session_token and failures[0] < 2:
            failures[0] += 1
            raise credentials.CredentialError("no space left on device")
        real(path, found)

    monkeypatch.setattr("tunnel.agent.runner.store", store)
    assert await run_until_idle(agent, link) is None
    stored = credentials.load(told.credentials)
    assert stored is not None
    assert stored.session_token == SESSION
    assert failures[0] == 2


async def test_wrong_roles_are_told(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    even = b"\x00\x01\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00"  # SYN of stream 2: the daemon is a yamux server
    link = ScriptedLink([ScriptedTransport(1006, 5.0, first=even)])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert any("VISIONA_YAMUX_ROLE" in record.getMessage() for record in caplog.records)


async def test_stop_while_waiting_connecting_and_serving(
    told: AgentSettings, autojump_clock: trio.testing.MockClock
) -> None:
    serving = ScriptedTransport()
    for steps in ([DialError("x")] * 50, [], [serving]):
        link = ScriptedLink(list(steps))
        agent = agent_for(told, link)
        async with trio.open_nursery() as nursery:
            codes: list[int] = []

            async def run(agent: Agent = agent, codes: list[int] = codes) -> None:
                codes.append(await agent.run())

            nursery.start_soon(run)
            await trio.sleep(7.3)
            began = trio.current_time()
            agent.stop()
        assert codes == [0]
        assert trio.current_time() - began < 3
    assert serving.closed_with == (1001, "agent stops")
    assert bytes(serving.sent[:2]) == b"\x00\x03", "no GoAway was said"


async def test_a_fault_of_ours_costs_one_session_only(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    link = ScriptedLink([ZeroDivisionError("a bug"), DialError("x")])
    assert await run_until_idle(agent_for(told, link), link) is None
    assert len(link.attempts) == 3
    assert any(record.exc_info for record in caplog.records)


async def test_what_it_cannot_start_without(told: AgentSettings) -> None:
    link = ScriptedLink([])
    with pytest.raises(UsageError, match="not paired"):
        await agent_for(replace(told, pairing_token=""), link).run()
    with pytest.raises(UsageError, match="--url"):
        await agent_for(replace(told, endpoint=None), link).run()
    with credentials.only_agent(told.credentials), pytest.raises(AgentBusyError):
        await agent_for(told, link).run()

    def broken(*_: object) -> Link:
        raise AddressError("socks5:// is not supported")

    with pytest.raises(UsageError, match="proxy"):
        await Agent(told, {}, make_link=broken).run()
    assert link.attempts == []


async def test_the_state_file_never_holds_a_token(
    told: AgentSettings, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    link = ScriptedLink([ScriptedTransport(1006, 1.0)])
    link.session_token = SESSION
    await run_until_idle(agent_for(told, link), link)
    written = credentials.state_path(told.credentials).read_text()
    assert json.loads(written)["device_id"] == "device-1"
    logged = "\n".join(f"{r.getMessage()} {r.__dict__.get('facts')}" for r in caplog.records)
    for secret in (PAIRING, SESSION):
        assert secret not in written
        assert secret not in logged
