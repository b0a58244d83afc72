"""One request without its thread: what becomes of its client's connection, of its place, and of those who count it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from django.test import RequestFactory

from apps.proxy.exchanges import attempts
from apps.proxy.exchanges.forwarding import Forwarding
from apps.proxy.exchanges.long_exchanges import LongExchanges
from apps.tunnels.client_request import RequestHead
from apps.tunnels.route import Route
from tests.apps.proxy.kit import WAIT, until
from tests.apps.tunnels.carriage_kit import ANSWER, World
from tunnel.contract import DATA, ExchangeCall, record
from tunnel.http.body import LengthReader

ROUTE = Route("0190a0a0-0000-7000-8000-00000000000a", "http://daemon:3801", "session", 1)
HEAD = RequestHead(b"GET", b"/", [(b"Host", b"box")], http11=True)


class Loan:
    """The client's connection as a worker lends it: notes what it is told."""

    def __init__(self, world: World) -> None:
        self.sock = world.lent
        self.told: list[tuple[str, object]] = []
        self.over = threading.Event()

    def note(self, what: str, how: object = None) -> None:
        self.told.append((what, how))
        self.over.set()

    def take(self) -> bytes:
        return b""

    def give_back(self, rest: bytes, *, answered: bool, keep_alive: bool, sent: int = 0) -> None:
        self.note("given back", (answered, keep_alive))

    def cut(self, sent: int = 0) -> None:
        self.note("cut")

    def hand_over(self, go_on: Callable[[], None]) -> None:
        self.go_on = go_on

    def resume(self, rest: bytes, *, keep_alive: bool) -> None:
        self.note("resumed", keep_alive)

    def reset(self) -> None:
        self.note("reset")

    def unsent(self) -> int:
        return 0

    def threads_free(self) -> float:
        return 0.0  # so that it leaves its thread at once


class Members:
    """A cluster in which nobody else is left."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def next(self, code: str) -> None:
        self.told.append(f"next {code}")

    def answered(self) -> None:
        self.told.append("answered")

    def over(self, code: str = "") -> None:
        self.told.append(f"over {code}")


class Crowded(LongExchanges):
    """A loop beside which no thread is free for what waits."""

    def waiting(self, owner: str, work: Callable[[], None]) -> bool:
        return False


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()
    monkeypatch.setattr(attempts.Attempts, "_connection", lambda _self: made.node)
    yield made
    made.close()


def started(
    world: World, *, crowded: bool = False, members: Members | None = None, fields: tuple[tuple[str, str], ...] = ()
) -> tuple[Loan, LongExchanges]:
    """A request that goes on in the loop, with its place."""
    loop = (Crowded if crowded else LongExchanges)(8, dead=lambda _: set(), tidy=lambda: None)
    assert loop.claim("user")
    call = ExchangeCall(
        device_id=ROUTE.device_id, epoch=1, session="session", node_url=ROUTE.node_url, moving=False, user_id="user",
        login="", body_max=1, peer="192.0.2.1", address="192.0.2.1", scheme="http", trusted=False, mount="", home="",
        upgrade=False, request_id="req_1", traceparent="", fields=list(fields), names_device=False,
    )  # fmt: skip
    loan = Loan(world)
    request = RequestFactory().get("/", HTTP_ACCEPT_LANGUAGE="zh-TW")
    forwarding = Forwarding(
        request, ROUTE, loop=loop, head=HEAD, idempotent=True, call=call,
        carriage=world.carriage_of(LengthReader(0)), copy=None, client=loan, others=members, tap=None,
    )  # fmt: skip
    response = forwarding.start(upgrade=False)
    assert b"".join(response) == b""
    assert response.goes_on
    loan.go_on()
    world.told()
    return loan, loop


def is_left(loop: LongExchanges) -> None:
    until(lambda: loop._shares.taken == 0)


@pytest.mark.django_db
def test_a_whole_answer_gives_the_connection_back(world: World) -> None:
    loan, loop = started(world)
    world.daemon.sendall(record(DATA, ANSWER))
    world.end()
    assert loan.over.wait(WAIT)
    assert loan.told == [("resumed", True)]
    is_left(loop)


@pytest.mark.django_db
def test_of_a_cluster_too_however_many_wait(world: World) -> None:
    """What is over needs no thread that waits: no refusal is written behind a whole answer."""
    members = Members()
    loan, loop = started(world, crowded=True, members=members)
    world.daemon.sendall(record(DATA, ANSWER))
    world.end()
    assert loan.over.wait(WAIT)
    assert loan.told == [("resumed", True)]
    until(lambda: members.told == ["answered", "over "])
    assert world.client.recv(1000) == ANSWER
    is_left(loop)


@pytest.mark.django_db
def test_what_should_go_elsewhere_and_finds_no_thread_is_refused(world: World) -> None:
    loan, loop = started(world, crowded=True, members=Members())
    world.end(outcome="refused", code="TUNNEL_DISCONNECTED", problem="gone", repeatable=True, status=None)
    assert loan.over.wait(WAIT)
    assert loan.told == [("resumed", False)]
    assert b'"code":"OVERLOADED"' in world.client.recv(4096).replace(b'": ', b'":')
    is_left(loop)


@pytest.mark.django_db
def test_a_late_refusal_has_the_fields_of_an_early_one(world: World) -> None:
    loan, _ = started(world, fields=(("Access-Control-Allow-Origin", "http://front.example"),))
    world.end(outcome="refused", code="UNAUTHENTICATED", problem="over", message="its own words", status=None)
    assert loan.over.wait(WAIT)
    head, _, body = world.client.recv(4096).partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert names >= {
        b"vary", b"content-language", b"date", b"www-authenticate", b"access-control-allow-origin", b"x-request-id",
        b"access-control-expose-headers", b"content-security-policy", b"cache-control", b"content-length",
    }  # fmt: skip
    assert b"its own words" in body


@pytest.mark.django_db
@pytest.mark.parametrize("answered", [False, True])
def test_a_daemon_that_dies(world: World, monkeypatch: pytest.MonkeyPatch, *, answered: bool) -> None:
    monkeypatch.setattr(attempts.Attempts, "_elsewhere", lambda _self, _code: None)
    loan, loop = started(world)
    if answered:
        world.daemon.sendall(record(DATA, ANSWER))
        assert world.client.recv(1000) == ANSWER
    world.daemon.close()
    assert loan.over.wait(WAIT)
    assert loan.told == ([("reset", None)] if answered else [("resumed", False)])
    is_left(loop)


@pytest.mark.django_db
def test_a_bug_in_another_attempt_leaves_nothing_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts.Attempts, "_elsewhere", lambda _self, _code: 1 / 0)
    loan, loop = started(world)
    world.daemon.close()
    assert loan.over.wait(WAIT)
    assert loan.told == [("reset", None)]
    is_left(loop)
