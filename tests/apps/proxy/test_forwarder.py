"""The forwarder by itself: a client's socket pair on one side, the stand-in daemon and a scripted box on the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from apps.tunnels import forwarder
from apps.tunnels.forwarder import (
    ClientLeft,
    Ended,
    Forward,
    Limits,
    ProxyError,
    Route,
)
from tests.apps.proxy.forwarder_kit import FakeClient, FakeControl, make, route, run
from tests.apps.proxy.kit import WAIT, Box, Peer, until
from tests.apps.proxy.stand_in import StandInDaemon
from tests.ports import free_port

pytestmark = pytest.mark.usefixtures("_no_pool")


@pytest.fixture
def _no_pool() -> Iterator[None]:
    forwarder.pool.abandon()
    yield
    forwarder.pool.expire(time.monotonic() + 1e6)
    forwarder.pool.abandon()


@pytest.fixture
def client() -> Iterator[FakeClient]:
    made = FakeClient()
    yield made
    made.close()


def test_a_request_reaches_the_box_and_its_answer_the_client(
    box: Box, daemon: StandInDaemon, client: FakeClient
) -> None:
    forward = make(client, route(daemon), b"/a%2Fb?x=1", fields=((b"Authorization", b"Bearer vAu_x"),))
    got = run(forward, client)
    assert (got.status, got.complete, got.one("x-ours")) == (200, True, "yes")
    assert b"GET /a%2Fb?x=1 HTTP/1.1" in box.heads[0]
    assert b"vAu_x" not in box.heads[0]
    assert forward.outcome == "ok"
    assert client.given == (b"", True, True)
    (call,) = daemon.calls
    assert b"Authorization: Bearer s3cret" in call
    assert b"X-Tunnel-Session: session-1" in call
    assert b"X-Request-ID: req_1" in call


def test_what_came_behind_the_request_is_given_back(box: Box, daemon: StandInDaemon) -> None:
    client = FakeClient(early=b"bodyGET /next")
    forward = make(client, route(daemon), method=b"POST", fields=((b"Content-Length", b"4"),))
    got = run(forward, client)
    assert got.json["size"] == 4
    assert client.given == (b"GET /next", True, True)
    client.close()


def test_an_agent_that_names_keepalive_has_its_stream_used_again(
    box: Box, daemon: StandInDaemon, client: FakeClient
) -> None:
    for _ in range(3):
        run(make(client, route(daemon), method=b"POST", fields=((b"Content-Length", b"0"),)), client)
    assert daemon.accepted == 1
    assert len(forwarder.pool) == 1


def test_a_silent_agent_proves_itself_first_and_for_idempotent_requests_only(
    box: Box, daemon: StandInDaemon, client: FakeClient
) -> None:
    daemon.features = ""
    run(make(client, route(daemon)), client)
    assert run(make(client, route(daemon)), client).status == 200  # within 100 ms: not proven yet
    before = daemon.accepted
    assert before >= 1
    time.sleep(0.12)  # the rule is a time on the wall, and sockets know no other clock
    run(make(client, route(daemon)), client)
    assert daemon.accepted == before
    run(make(client, route(daemon), method=b"POST", fields=((b"Content-Length", b"0"),)), client)
    assert daemon.accepted == before + 1


def test_a_reused_stream_that_ends_unanswered_is_tried_again_on_a_new_one(
    box: Box, daemon: StandInDaemon, client: FakeClient
) -> None:
    served: list[int] = []

    def once_each(peer: Peer) -> bool:
        served.append(1)
        if len(served) == 2:
            return False  # the second request on the first connection: gone without a byte
        peer.answer(b"ok")
        return True

    box.on("/once", once_each)
    run(make(client, route(daemon), b"/once"), client)
    forward = make(client, route(daemon), b"/once")
    got = run(forward, client)
    assert (got.status, got.body) == (200, b"ok")
    assert (forward.attempts, len(served), daemon.accepted) == (2, 3, 2)


def test_what_may_have_been_done_is_not_done_twice(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    served: list[int] = []

    def second_dies(peer: Peer) -> bool:
        served.append(1)
        if len(served) == 2:
            return False
        peer.answer(b"ok")
        return True

    box.on("/once", second_dies)
    run(make(client, route(daemon), b"/once"), client)
    with pytest.raises(ProxyError) as caught:
        run(make(client, route(daemon), b"/once", method=b"POST", fields=((b"Content-Length", b"0"),)), client)
    assert caught.value.code == "AGENT_UNREACHABLE"
    assert len(served) == 2


def test_a_pooled_stream_that_the_box_closed_is_not_used(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    def last(peer: Peer) -> bool:
        peer.answer(b"ok")
        return False

    box.on("/last", last)
    run(make(client, route(daemon), b"/last"), client)
    until(lambda: not daemon.live or len(daemon.live) == 1)
    time.sleep(0.05)  # the end of the box's side passes two sockets
    forward = make(client, route(daemon))
    run(forward, client)
    assert (forward.attempts, forward.reused) == (1, False)


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        ((404, "NOT_FOUND"), "TUNNEL_DISCONNECTED"),
        ((503, "OVERLOADED"), "OVERLOADED"),
        ((503, "TUNNEL_UNAVAILABLE"), "TUNNEL_UNAVAILABLE"),
        ((503, "SOMETHING"), "OVERLOADED"),
        ((504, "TUNNEL_TIMEOUT"), "TUNNEL_TIMEOUT"),
        ((401, "UNAUTHENTICATED"), "TUNNEL_UNAVAILABLE"),
        ((502, "AGENT_UNREACHABLE"), "AGENT_UNREACHABLE"),
        ((500, "INTERNAL_ERROR"), "TUNNEL_UNAVAILABLE"),
    ],
)
def test_each_refusal_of_the_daemon_has_its_code(
    daemon: StandInDaemon, client: FakeClient, refusal: tuple[int, str], code: str
) -> None:
    daemon.refuse = refusal
    with pytest.raises(ProxyError) as caught:
        make(client, route(daemon)).to_head()
    assert caught.value.code == code
    assert client.given == (b"", False, True)


def test_a_newer_session_is_tried_once(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    daemon.sessions = {"session-2"}
    forward = make(client, route(daemon), newer=route(daemon, "session-2"))
    assert run(forward, client).status == 200
    assert forward.route.session == "session-2"
    assert len(daemon.calls) == 2


def test_no_daemon_is_told_as_such(client: FakeClient) -> None:
    port = free_port()
    with pytest.raises(ProxyError) as caught:
        make(client, Route("device-1", f"http://127.0.0.1:{port}", "session-1", 1)).to_head()
    assert caught.value.code == "TUNNEL_UNAVAILABLE"


def test_a_daemon_that_is_frozen_is_told_as_such(daemon: StandInDaemon, client: FakeClient) -> None:
    daemon.silent.set()
    with pytest.raises(ProxyError) as caught:
        make(client, route(daemon), limits=Limits(open_seconds=0.1)).to_head()
    assert caught.value.code == "TUNNEL_UNAVAILABLE"


def test_a_local_server_that_refuses_is_unreachable(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    box.close()
    with pytest.raises(ProxyError) as caught:
        make(client, route(daemon)).to_head()
    assert caught.value.code == "AGENT_UNREACHABLE"


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 200 O", b"220 smtp ready\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
)
def test_what_is_no_head_is_a_bad_response(box: Box, daemon: StandInDaemon, client: FakeClient, said: bytes) -> None:
    box.on("/bad", lambda peer: peer.sock.sendall(said))
    with pytest.raises(ProxyError) as caught:
        make(client, route(daemon), b"/bad").to_head()
    assert caught.value.code == "AGENT_BAD_RESPONSE"


def test_a_head_that_does_not_come_times_out(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    gone: list[str] = []
    box.on("/slow", lambda peer: gone.append(peer.wait_gone()))
    with pytest.raises(ProxyError) as caught:
        make(client, route(daemon), b"/slow", limits=Limits(head_seconds=0.2)).to_head()
    assert caught.value.code == "TUNNEL_TIMEOUT"
    until(lambda: gone == ["reset"])


def test_a_client_that_stops_within_its_body_times_out(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    forward = make(
        client,
        route(daemon),
        method=b"POST",
        fields=((b"Content-Length", b"10"),),
        limits=Limits(head_seconds=0.1, idle_seconds=0.3),
    )
    client.wire.send(b"12345")
    with pytest.raises(ProxyError) as caught:
        forward.to_head()
    assert caught.value.code == "REQUEST_TIMEOUT"
    assert client.given == (b"", False, False)


def test_a_body_that_stops_is_cut_at_the_idle_limit(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    def stall(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        peer.wait_gone()

    box.on("/stall", stall)
    forward = make(client, route(daemon), b"/stall", limits=Limits(idle_seconds=0.2))
    got = run(forward, client)
    assert (got.body, got.complete) == (b"12345", False)
    assert (forward.outcome, client.was_cut) == ("cut", True)


@pytest.mark.parametrize("moment", ["open", "head", "body"])
def test_the_client_leaves_and_the_box_is_reset(
    box: Box, daemon: StandInDaemon, client: FakeClient, moment: str
) -> None:
    gone: list[str] = []
    reached = threading.Event()

    def wait(peer: Peer) -> None:
        if moment == "body":
            peer.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        reached.set()
        gone.append(peer.wait_gone())

    box.on("/wait", wait)
    if moment == "open":
        daemon.silent.set()
    forward = make(client, route(daemon), b"/wait", limits=Limits())
    thread = threading.Thread(target=_swallow, args=(forward,))
    thread.start()
    if moment == "open":
        until(lambda: daemon.calls)
    else:
        assert reached.wait(WAIT)
    if moment == "body":
        client.wire.read_head()
    left_at = time.monotonic()
    client.wire.sock.close()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert time.monotonic() - left_at < 10
    assert forward.outcome == "client_left"
    if moment != "open":
        until(lambda: gone == ["reset"], 1)


def _swallow(forward: Forward) -> None:
    with suppress(ClientLeft, Ended):
        forward.to_head()
        forward.to_end([])


def test_whoever_ends_it_is_heard(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    control = FakeControl()
    box.on("/endless", lambda peer: (peer.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nx"), peer.wait_gone())[0])
    forward = make(client, route(daemon), b"/endless", control=control, limits=Limits())
    thread = threading.Thread(target=_swallow, args=(forward,))
    thread.start()
    client.wire.read_head()
    control.ended = "UNAUTHENTICATED"
    assert client.wire.wait_end(2) == "reset"
    thread.join(WAIT)
    assert (forward.outcome, forward.problem) == ("ended", "UNAUTHENTICATED")


def test_an_exchange_that_nobody_finishes_leaves_nothing(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    gone: list[str] = []

    def stream(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nx")
        gone.append(peer.wait_gone())

    box.on("/stream", stream)
    forward = make(client, route(daemon), b"/stream")
    forward.to_head()
    forward.close()
    forward.close()
    assert (forward.outcome, client.was_cut) == ("abandoned", True)
    until(lambda: gone == ["reset"])


def test_the_state_shows(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    forward = make(client, route(daemon))
    assert "running" in repr(forward)
    run(forward, client)
    assert "ok" in repr(forward)
    assert repr(forwarder.pool) == "<StreamPool sessions=1 idle=1>"


def test_a_device_that_changes_daemons_is_waited_for(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    """First its daemon drains and takes no more, then nobody has it, then another has."""
    daemon.sessions = {"session-2"}
    to = route(daemon)
    forward = make(client, replace(to, moving=True))
    told = iter([replace(to, moving=True), Route("device-1", "", "", 1, moving=True), route(daemon, "session-2")])
    forward._find_route = lambda _than: next(told)
    assert run(forward, client).status == 200
    assert forward.route.session == "session-2"


def test_one_that_changes_daemons_twice_is_found(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    daemon.sessions = {"session-3"}
    forward = make(client, route(daemon))
    told = iter([route(daemon, "session-2"), Route("device-1", "", "", 1, moving=True), route(daemon, "session-3")])
    instead_of: list[str] = []
    first = forward.route.session

    def find(than: str) -> Route:
        instead_of.append(than)
        return next(told)

    forward._find_route = find
    assert run(forward, client).status == 200
    assert instead_of == [first, "session-2", "session-2"]


def test_of_several_on_their_way_the_first_that_is_back_is_asked(
    box: Box, daemon: StandInDaemon, client: FakeClient
) -> None:
    """Members of a cluster: it is not the one that the request would have gone to."""
    away = Route("device-1", "", "", 1, moving=True)
    told = iter([None, None, replace(route(daemon), device_id="device-2")])
    forward = make(client, away, elsewhere=lambda _code: next(told))
    assert run(forward, client).status == 200
    assert forward.route.device_id == "device-2"


def test_a_member_that_is_back_is_counted_as_one(box: Box, daemon: StandInDaemon, client: FakeClient) -> None:
    """Who knows of it is asked before it is used; where he takes no more, it is used all the same."""
    away = Route("device-1", "", "", 1, moving=True)
    asked: list[str] = []

    def nobody(code: str) -> None:
        asked.append(code)

    forward = make(client, away, newer=route(daemon, "session-1"), elsewhere=nobody)
    assert run(forward, client).status == 200
    assert asked == ["TUNNEL_DISCONNECTED"] * 2


def test_one_that_does_not_come_back_is_waited_for_as_long_as_an_open_takes(client: FakeClient) -> None:
    limits = Limits(open_seconds=0.3, head_seconds=2, idle_seconds=2)
    away = Route("device-1", "", "", 1, moving=True)
    with pytest.raises(ProxyError) as caught:
        make(client, away, limits=limits).to_head()
    assert (caught.value.code, caught.value.retry_after) == ("TUNNEL_DISCONNECTED", 5)


def test_nobody_waits_for_a_client_that_left(client: FakeClient) -> None:
    client.wire.sock.close()
    with pytest.raises(ClientLeft):
        make(client, Route("device-1", "", "", 1, moving=True)).to_head()
