"""Closing tunnels: at once by the daemon's internal API, and what is left to heartbeats. A real HTTP server answers."""

import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import urllib3
from django.conf import settings

from apps.tunnels import daemon, registry, services
from apps.tunnels.registry import Held, Session

Reply = Callable[[BaseHTTPRequestHandler], tuple[int, bytes]]


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # of a few at once none must be turned away and try again after a second

    def handle_error(self, *args: Any) -> None:
        """Callers whose time is up hang up: nothing to print."""


class FakeDaemon:
    """Notes the calls, answers by `reply`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        self.told: list[tuple[str, Any]] = []
        self.reply: Reply = lambda handler: (200, b'{"success": true, "data": null}')
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if body:
                    fake.told.append((self.path, json.loads(body)))
                else:
                    fake.calls.append((self.command, self.path, dict(self.headers)))
                status, body = fake.reply(self)
                with suppress(BrokenPipeError, ConnectionResetError):  # the caller's time was up
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            do_GET = do_DELETE = do_POST = do_any  # noqa: N815 - http.server's names

            def log_message(self, *args: Any) -> None:
                """Silent."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        daemon._pool().clear()


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    server = FakeDaemon()
    registry.heartbeat(
        node="n1",
        url=server.url,
        version="1",
        started_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        sessions_count=0,
        streams_count=0,
        draining=False,
    )
    yield server
    server.stop()


def online(count: int) -> None:
    registry.put("n1", [Session(f"d{n}", f"s{n}", 1, "u1", "2026-01-01T00:00:00Z") for n in range(count)])


def pending() -> set[tuple[str, int, str]]:
    return {(each.session, each.code, each.reason) for each in registry.pending_closes("n1")}


def test_a_close_carries_secret_contract_code_and_request_id(fake):
    assert daemon.close_session(fake.url, "a/b", 4401, "revoked", request_id="req_1") is True
    ((method, path, headers),) = fake.calls
    assert (method, path) == ("DELETE", "/internal/session/a%2Fb?code=4401&reason=revoked")
    assert headers["Authorization"] == f"Bearer {settings.VISIONA['INTERNAL_SECRET'][0]}"
    assert (headers["X-VisionA-Contract"], headers["X-Request-ID"]) == ("1", "req_1")


def test_a_session_that_the_daemon_does_not_know(fake):
    fake.reply = lambda handler: (404, b"{}")
    assert daemon.close_session(fake.url, "s", 4401) is False
    assert daemon.session_fact(fake.url, "s") is None


def test_what_the_daemon_says_of_a_session(fake):
    fake.reply = lambda handler: (200, json.dumps({"success": True, "data": {"session": "s"}}).encode())
    assert daemon.session_fact(fake.url, "s") == {"session": "s"}


@pytest.mark.parametrize(
    "status,body", [(500, b""), (503, b"{}"), (401, b"{}"), (403, b"{}"), (200, b"no"), (200, b"[]"), (200, b"{}")]
)
def test_an_answer_that_is_none(fake, status, body):
    fake.reply = lambda handler: (status, body)
    with pytest.raises(daemon.DaemonUnavailable) as caught:
        daemon.session_fact(fake.url, "s")
    assert caught.value.code == "TUNNEL_UNAVAILABLE"


def test_an_answer_without_end_is_not_read_whole(fake, monkeypatch):
    monkeypatch.setattr(daemon, "MAX_ANSWER_BYTES", 100)
    fake.reply = lambda handler: (200, b"x" * 101)
    with pytest.raises(daemon.DaemonUnavailable):
        daemon.session_fact(fake.url, "s")


def test_nobody_listens():
    with pytest.raises(daemon.DaemonUnavailable):
        daemon.close_session("http://127.0.0.1:1", "s", 4401)


def test_a_daemon_that_does_not_answer_costs_a_bounded_time(fake, monkeypatch):
    monkeypatch.setattr(daemon, "READ_SECONDS", 0.1)
    daemon._pool.cache_clear()
    release = threading.Event()
    fake.reply = lambda handler: (release.wait(60), (200, b""))[1]
    try:
        with pytest.raises(daemon.DaemonUnavailable):
            daemon.close_session(fake.url, "s", 4401)
    finally:
        release.set()
        daemon._pool.cache_clear()


def test_an_ended_device_is_closed_at_once_and_nothing_is_left_to_do(fake):
    online(1)
    assert services.end_devices({"d0": 1}, code=4401, reason="revoked") == 0
    assert [call[1] for call in fake.calls] == ["/internal/session/s0?code=4401&reason=revoked"]
    assert fake.told == [("/internal/authz/invalidate", {"users": [], "logins": [], "devices": ["d0"]})]
    assert registry.lookup(["d0"]) == {}
    assert pending() == set()


def test_all_tunnels_of_a_user(fake):
    online(20)
    registry.put("n1", [Session("other", "s-other", 1, "u2", "2026-01-01T00:00:00Z")])
    assert services.close_user("u1", code=4403, reason="disabled") == 0
    assert len(fake.calls) == 20
    ((_, told),) = fake.told
    assert (told["users"], sorted(told["devices"])) == (["u1"], sorted(f"d{n}" for n in range(20)))
    assert registry.online_devices() == {"other"}


@pytest.mark.parametrize("status", [404, 500])
def test_what_could_not_be_closed_waits_for_the_heartbeat_and_is_tried_again(fake, status):
    online(2)
    fake.reply = lambda handler: (status, b"{}")
    assert services.end_devices({"d0": 1, "d1": 1}, code=4401, reason="revoked") == 2
    assert pending() == {("s0", 4401, "revoked"), ("s1", 4401, "revoked")}
    fake.reply = lambda handler: (200, b"{}")
    assert services.close_pending() == 2
    assert pending() == set()


@pytest.fixture
def hanging(fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """Takes each call and answers none before the test's end, and no call's own time is up before that: who returns
    has waited for none of them."""
    patient = urllib3.PoolManager(maxsize=8, retries=False, timeout=60)
    monkeypatch.setattr(daemon, "_pool", lambda: patient)
    release = threading.Event()
    fake.reply = lambda handler: (release.wait(60), (200, b"{}"))[1]
    yield fake
    release.set()
    patient.clear()


def test_many_that_hang_do_not_hold_the_caller(hanging, monkeypatch):
    monkeypatch.setattr(services, "CLOSE_BUDGET_SECONDS", 0.2)
    online(30)
    assert services.end_devices({f"d{n}": 1 for n in range(30)}, code=4401, reason="revoked") == 30
    assert len(pending()) == 30
    assert len(hanging.calls) < 30, "no more are begun than run at once"


def test_a_node_that_is_gone_needs_no_closing(fake):
    held = Held("d0", "gone", "s0", "")
    assert services.close([held], code=4401, reason="revoked") == 1
    assert fake.calls == []


def test_every_live_node_drops_what_it_was_told(fake):
    assert services.invalidate(logins=["hash"], request_id="req_1") == 1
    assert fake.told == [("/internal/authz/invalidate", {"users": [], "logins": ["hash"], "devices": []})]
    assert services.invalidate() == 0
    assert len(fake.told) == 1


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_node_that_will_not_drop_is_left_to_expiry(fake, status):
    fake.reply = lambda handler: (status, b"{}")
    assert services.invalidate(users=["u1"]) == 0


def test_nodes_that_hang_cost_a_bounded_time(hanging, monkeypatch):
    monkeypatch.setattr(services, "INVALIDATE_BUDGET_SECONDS", 0.2)
    for number in range(2, 12):
        registry.heartbeat(
            node=f"n{number}",
            url=f"{hanging.url}/{number}",
            version="1",
            started_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            sessions_count=0,
            streams_count=0,
            draining=False,
        )
    assert services.invalidate(users=["u1"]) == 0


def second(fake: FakeDaemon) -> None:
    """Another live daemon, n2."""
    registry.heartbeat(
        node="n2",
        url=fake.url,
        version="1",
        started_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        sessions_count=0,
        streams_count=0,
        draining=False,
    )
    registry.put("n2", [Session("z", "sz", 1, "u1", "2026-01-01T00:00:00Z")])


def test_one_that_hangs_keeps_no_call_to_another_waiting(hanging, monkeypatch):
    monkeypatch.setattr(services, "CLOSE_BUDGET_SECONDS", 2)
    other = FakeDaemon()
    try:
        second(other)
        online(30)
        ended = {**{f"d{n}": 1 for n in range(30)}, "z": 1}
        assert services.end_devices(ended, code=4401, reason="revoked") == 30
        assert [path for _, path, _ in other.calls] == ["/internal/session/sz?code=4401&reason=revoked"]
        assert [path for path, _ in other.told] == ["/internal/authz/invalidate"]
    finally:
        other.stop()


def test_what_is_tried_again_has_a_bounded_time_and_hangs_for_one_daemon_only(hanging, monkeypatch):
    """It is a job of every five seconds: in a row the closes that hang would hold the worker's places one by one."""
    monkeypatch.setattr(services, "CLOSE_BUDGET_SECONDS", 2)
    other = FakeDaemon()
    try:
        second(other)
        held = [Held(f"d{n}", "n1", f"s{n}", "") for n in range(30)]
        registry.request_close([*held, Held("z", "n2", "sz", "")], code=4401, reason="revoked")
        assert services.close_pending() == 1
        assert len(pending()) == 30
        assert registry.pending_closes("n2") == []
    finally:
        other.stop()


def test_the_call_after_one_that_was_not_read_whole_succeeds(fake, monkeypatch):
    monkeypatch.setattr(daemon, "MAX_ANSWER_BYTES", 100)
    fake.reply = lambda handler: (200, b"x" * 300_000)
    with pytest.raises(daemon.DaemonUnavailable):
        daemon.session_fact(fake.url, "s")
    fake.reply = lambda handler: (200, json.dumps({"data": {"session": "s"}}).encode())
    assert daemon.session_fact(fake.url, "s") == {"session": "s"}
