"""`/api/clusters/{id}/proxy/*` over several scripted boxes: who is asked, what is tried elsewhere, what is not."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.apps.proxy.kit import Box, Got, Peer, until
from tests.apps.proxy.stack import Lane, Stack, add_device, add_user, log_in, put_online
from tests.apps.proxy.stand_in import StandInDaemon
from tests.system.ws_kit import WS, echo, receive

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]


class Member:
    """A box with a daemon and a node of its own."""

    def __init__(self, stack: Stack, owner: str, cluster: str, weight: int) -> None:
        self.box = Box()
        self.daemon = StandInDaemon(self.box.port)
        self.device = add_device(stack, owner)
        self.owner = owner
        stack.rows(
            "INSERT INTO cluster_members (id, created_at, updated_at, cluster_id, device_id, weight)"
            " VALUES (%s, now(), now(), %s, %s, %s)",
            str(uuid.uuid4()), cluster, self.device, weight,
        )  # fmt: skip

    def go_online(self) -> None:
        put_online(self.device, self.owner, self.daemon, node=f"node-{self.device}")

    def close(self) -> None:
        self.daemon.close()
        self.box.close()


class Cluster:
    def __init__(self, stack: Stack, lane: Lane) -> None:
        self.stack = stack
        self.lane = lane
        self.id = str(uuid.uuid4())
        self.members: list[Member] = []
        self.prefix = f"/api/clusters/{self.id}/proxy"
        stack.rows(
            "INSERT INTO clusters (id, created_at, updated_at, owner_id, name) VALUES (%s, now(), now(), %s, 'Hall')",
            self.id, lane.user_id,
        )  # fmt: skip

    def add(self, *weights: int) -> list[Member]:
        added = [Member(self.stack, self.lane.user_id, self.id, weight) for weight in weights]
        for member in added:
            member.go_online()
        self.members += added
        return added

    def ask(self, method: str, path: str, *fields: str, body: bytes = b"") -> Got:
        return self.lane.ask(method, path, *fields, prefix=self.prefix, body=body)

    def asked(self) -> Counter[str]:
        return Counter({member.device: len(member.box.heads) for member in self.members if member.box.heads})


@pytest.fixture
def cluster(stack: Stack, lane: Lane) -> Iterator[Cluster]:
    made = Cluster(stack, lane)
    yield made
    for member in made.members:
        member.close()


def served_by(got: Got) -> str:
    assert got.status == 200, got.body
    return got.one("x-visiona-device-id")


# --- who is asked -----------------------------------------------------------------------------------------------------
def test_shares_are_by_weight(cluster: Cluster) -> None:
    light, heavy = cluster.add(1, 3)
    named = Counter(served_by(cluster.ask("GET", f"/x?n={n}")) for n in range(40))
    assert named == {light.device: 10, heavy.device: 30}
    assert cluster.asked() == named


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
def test_any_method_path_and_body_pass(cluster: Cluster, method: str) -> None:
    cluster.add(1)
    got = cluster.ask(method, "/a%2Fb/?x=1&y", "X-More: 1", body=b"12345")
    assert got.json["line"] == f"{method} /a%2Fb/?x=1&y HTTP/1.1"
    assert got.json["size"] == 5
    assert ["X-More", "1"] in got.json["fields"]


def test_a_location_gets_the_clusters_prefix(cluster: Cluster) -> None:
    (member,) = cluster.add(1)
    member.box.on("/go", lambda peer: peer.answer(b"", "302 Found", "Location: /there"))
    assert cluster.ask("GET", "/go").one("location") == f"{cluster.prefix}/there"


def test_a_websocket_passes_and_its_member_is_busy_with_it(cluster: Cluster) -> None:
    first, second = cluster.add(1, 1)
    for member in (first, second):
        member.box.on("/ws", echo)
    with cluster.lane.wire() as wire:
        wire.send(cluster.lane.head("GET", "/ws", *WS, prefix=cluster.prefix) + b"x")
        got = wire.read_head()
        assert got.status == 101
        assert receive(wire, 1) == b"x"
        other = ({first.device, second.device} - {got.one("x-visiona-device-id")}).pop()
        assert [served_by(cluster.ask("GET", "/x")) for _ in range(3)] == [other] * 3


def test_one_that_is_busy_is_passed_by(cluster: Cluster) -> None:
    first, second = cluster.add(1, 1)
    go_on = threading.Event()

    def hold(peer: Peer) -> bool:
        go_on.wait(30)
        peer.answer(b"late")
        return True

    first.box.on("/slow", hold)
    second.box.on("/slow", hold)
    with cluster.lane.wire() as wire:
        wire.send(cluster.lane.head("GET", "/slow", prefix=cluster.prefix))
        until(lambda: sum(cluster.asked().values()) == 1, 30)
        busy = next(iter(cluster.asked()))
        others = Counter(served_by(cluster.ask("GET", "/x")) for _ in range(6))
        go_on.set()
        assert wire.read().one("x-visiona-device-id") == busy
    assert busy not in others
    assert sum(others.values()) == 6


# --- refusals ---------------------------------------------------------------------------------------------------------
def test_only_the_owner_gets_through(cluster: Cluster, stack: Stack) -> None:
    cluster.add(1)
    lane = cluster.lane
    for token, code in ((log_in(add_user(stack)), "NOT_FOUND"), ("", "UNAUTHENTICATED")):
        lane.token = token
        assert cluster.ask("GET", "/x").code == code
    assert cluster.asked() == {}


@pytest.mark.parametrize("name", ["hall", "0198c0de-0000-7000-8000-00000000abcd"])
def test_an_unknown_cluster(cluster: Cluster, name: str) -> None:
    assert cluster.lane.ask("GET", "/x", prefix=f"/api/clusters/{name}/proxy").code == "NOT_FOUND"


def test_with_none_online(cluster: Cluster) -> None:
    got = cluster.ask("GET", "/x")
    assert (got.status, got.code) == (503, "TUNNEL_DISCONNECTED")
    assert got.one("retry-after")
    member = Member(cluster.stack, cluster.lane.user_id, cluster.id, 1)
    cluster.members.append(member)
    assert cluster.ask("GET", "/x").code == "TUNNEL_DISCONNECTED"
    member.go_online()
    assert served_by(cluster.ask("GET", "/x")) == member.device


def test_an_unpaired_member_is_out(cluster: Cluster) -> None:
    gone, stays = cluster.add(100, 1)
    cluster.stack.rows("UPDATE devices SET deleted_at = now() WHERE id = %s", gone.device)
    assert {served_by(cluster.ask("GET", "/x")) for _ in range(5)} == {stays.device}


# --- failures ---------------------------------------------------------------------------------------------------------
def refuse(member: Member, how: str) -> None:
    """Make a member one that cannot take a request, nothing of which is sent then."""
    if how == "unknown session":
        member.daemon.sessions.clear()
    elif how == "agent refuses":
        member.daemon.refuse = ("AGENT_UNREACHABLE", False)
    elif how == "no room":
        member.daemon.refuse = ("OVERLOADED", False)
    else:
        member.daemon.close()


@pytest.mark.parametrize("how", ["unknown session", "agent refuses", "no room", "no daemon"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_was_not_sent_is_tried_elsewhere(cluster: Cluster, how: str, method: str) -> None:
    bad, good = cluster.add(100, 1)
    refuse(bad, how)
    for _ in range(5):
        assert served_by(cluster.ask(method, "/x", body=b"12345")) == good.device


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_an_idempotent_request_that_got_no_answer_is_tried_elsewhere(cluster: Cluster, method: str) -> None:
    bad, good = cluster.add(100, 1)
    bad.box.on("/x", lambda peer: None)
    for _ in range(5):
        assert cluster.ask(method, "/x").one("x-visiona-device-id") == good.device
    assert len(bad.box.heads) < 5  # benched after the first, probed when a bench has ended


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_small_body_that_was_sent_goes_elsewhere_with_its_request(cluster: Cluster, framing: str) -> None:
    bad, good = cluster.add(100, 1)
    seen = []

    def read_and_leave(peer: Peer) -> None:
        seen.append(b"".join(peer.body()))

    bad.box.on("/x", read_and_leave)
    if framing == "length":
        got = cluster.ask("PUT", "/x", body=b"y" * 10_000)
    else:
        with cluster.lane.wire() as wire:
            wire.send(cluster.lane.head("PUT", "/x", "Transfer-Encoding: chunked", prefix=cluster.prefix))
            wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (10_000, b"y" * 10_000))
            got = wire.read()
    assert served_by(got) == good.device
    assert (got.json["size"], seen) == (10_000, [b"y" * 10_000])


def test_a_body_too_large_to_be_kept_goes_nowhere_else(cluster: Cluster) -> None:
    bad, _good = cluster.add(100, 1)

    def read_and_leave(peer: Peer) -> None:
        for _ in peer.body():
            pass

    bad.box.on("/x", read_and_leave)
    assert cluster.ask("PUT", "/x", body=b"y" * 200_000).code == "AGENT_UNREACHABLE"


def test_what_may_have_been_done_is_not_done_twice(cluster: Cluster) -> None:
    bad, good = cluster.add(100, 1)
    bad.box.on("/x", lambda peer: None)
    got = cluster.ask("POST", "/x", body=b"12345")
    assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")
    assert cluster.asked() == {bad.device: 1}
    assert good.box.heads == []


def test_a_begun_answer_is_not_tried_elsewhere(cluster: Cluster) -> None:
    bad, good = cluster.add(100, 1)
    bad.box.on("/x", lambda peer: peer.sock.sendall(b"HTTP/1.1 2"))
    assert cluster.ask("GET", "/x").code == "AGENT_BAD_RESPONSE"
    assert good.box.heads == []


def test_an_error_of_the_box_is_its_answer(cluster: Cluster) -> None:
    for member in cluster.add(1, 1):
        member.box.on("/x", lambda peer: peer.answer(b"no", "503 Busy"))
    assert [cluster.ask("GET", "/x").body for _ in range(4)] == [b"no"] * 4
    assert sorted(cluster.asked().values()) == [2, 2]


def test_when_all_fail_the_last_fault_is_told(cluster: Cluster) -> None:
    for member in cluster.add(1, 1, 1):
        member.box.on("/x", lambda peer: None)
    got = cluster.ask("GET", "/x")
    assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")
    assert sorted(cluster.asked().values()) == [1, 1, 1]


def test_a_member_that_is_well_again_is_asked_again(cluster: Cluster) -> None:
    flaky, good = cluster.add(100, 1)
    flaky.box.on("/x", lambda peer: None)
    assert served_by(cluster.ask("GET", "/x")) == good.device
    del flaky.box.scripts["/x"]
    until(lambda: served_by(cluster.ask("GET", "/x")) == flaky.device, 30)


def test_bodies_stream_both_ways(cluster: Cluster) -> None:
    cluster.add(1, 1)
    body = b"x" * 3_000_000
    said = json.loads(cluster.ask("POST", "/up", body=body).body)
    assert said["size"] == len(body)
