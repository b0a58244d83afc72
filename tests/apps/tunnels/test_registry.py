"""The registry on a real Valkey: fencing by epoch, compare and delete, nodes that come, go and are replaced."""

import datetime as dt
import uuid

import pytest

from apps.common import redis
from apps.tunnels import registry
from apps.tunnels.registry import Held, Session

T0 = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
URL = "http://127.0.0.1:3801"


def beat(
    node: str, url: str = URL, started: dt.datetime = T0, sessions: int = 0, *, draining: bool = False
) -> registry.Beat:
    return registry.heartbeat(
        node=node,
        url=url,
        version="1",
        started_at=started,
        sessions_count=sessions,
        streams_count=0,
        draining=draining,
    )


def session(device: str, epoch: int = 1, user: str = "u", name: str | None = None) -> Session:
    return Session(
        device, name or f"{device}-s{epoch}", epoch, user, "2026-01-01T00:00:00Z", "192.0.2.9", "a/1", ("x",)
    )


def expire(node: str) -> None:
    """What 30 s without a heartbeat do."""
    client = redis.client()
    client.delete(f"{registry.PREFIX}node:{node}")
    client.zadd(f"{registry.PREFIX}nodes", {node: 1})


def test_a_node_is_gone_thirty_seconds_after_its_last_heartbeat():
    """With the worker's job of every 5 s, the devices of a daemon that was killed are offline within 40 s."""
    beat("n1")
    redis.client().pexpire(f"{registry.PREFIX}node:n1", 5)
    beat("n1")  # pushed
    for key in ("node:n1", f"url:{URL}"):
        assert 20_000 < redis.client().pttl(registry.PREFIX + key) <= 30_000


def test_a_written_session_is_found_by_device_and_by_user():
    beat("n1")
    (put,) = registry.put("n1", [session("d1")])
    assert put == registry.Put("ok", None)
    entry = registry.lookup(["d1", "d2"])["d1"]
    assert (entry.node, entry.node_url, entry.session, entry.epoch) == ("n1", URL, "d1-s1", 1)
    assert (entry.user_id, entry.address, entry.agent, entry.features) == ("u", "192.0.2.9", "a/1", ("x",))
    assert set(registry.lookup_user("u")) == {"d1"}
    assert registry.lookup_user("other") == {}
    assert registry.online_devices() == {"d1"}
    assert registry.sessions_of("n1") == {"d1-s1": "d1"}


def test_a_device_of_an_unknown_node_is_offline_until_the_node_speaks():
    registry.put("n1", [session("d1")])
    assert registry.lookup(["d1"]) == {}
    assert registry.lookup_user("u") == {}
    assert registry.online_devices() == set()
    beat("n1")
    assert set(registry.lookup(["d1"])) == {"d1"}


def test_the_newest_connection_wins_and_tells_whom_it_displaced():
    beat("n1")
    beat("n2", "http://127.0.0.1:3901")
    registry.put("n1", [session("d1", 1)])
    (put,) = registry.put("n2", [session("d1", 2)])
    assert put == registry.Put("ok", Held("d1", "n1", "d1-s1", URL))
    assert registry.lookup(["d1"])["d1"].node == "n2"
    assert registry.sessions_of("n1") == {}


@pytest.mark.parametrize("late", [1, 2])
def test_an_older_epoch_or_the_same_of_another_session_changes_nothing(late):
    beat("n1")
    registry.put("n1", [session("d1", 2)])
    (put,) = registry.put("n1", [session("d1", late, name="other")])
    assert put == registry.Put("older", None)
    assert registry.lookup(["d1"])["d1"].session == "d1-s2"


def test_a_session_takes_out_only_itself():
    beat("n1")
    registry.put("n1", [session("d1", 2)])
    assert registry.remove([("d1", "d1-s1"), ("d9", "d9-s1")]) == 0
    assert set(registry.lookup(["d1"])) == {"d1"}
    assert registry.remove([("d1", "d1-s2")]) == 1
    assert registry.lookup(["d1"]) == {}
    assert registry.lookup_user("u") == {}
    assert registry.sessions_of("n1") == {}


def test_what_has_ended_is_not_brought_back_by_what_comes_late():
    beat("n1")
    registry.put("n1", [session("d1", 2)])
    registry.remove([("d1", "d1-s2")])
    assert [put.verdict for put in registry.put("n1", [session("d1", 1), session("d1", 2)])] == ["ended", "ended"]
    assert registry.lookup(["d1"]) == {}
    assert registry.put("n1", [session("d1", 3)])[0].verdict == "ok"


def test_ending_a_device_tells_what_to_close_and_fences_out_an_admission_under_way():
    beat("n1")
    registry.put("n1", [session("d1", 2)])
    assert registry.end({"d1": 2, "d2": 5}) == [Held("d1", "n1", "d1-s2", URL)]
    assert registry.lookup(["d1"]) == {}
    assert registry.end({"d1": 2}) == []
    assert registry.put("n1", [session("d2", 5)])[0].verdict == "ended"
    assert registry.put("n1", [session("d2", 6)])[0].verdict == "ok"


def test_ending_up_to_an_epoch_spares_a_newer_connection():
    beat("n1")
    registry.put("n1", [session("d1", 3)])
    assert registry.end({"d1": 2}) == []
    assert set(registry.lookup(["d1"])) == {"d1"}


def test_a_node_that_starts_anew_replaces_the_older_one_of_its_url_at_once():
    beat("old")
    registry.put("old", [session("d1"), session("d2")])
    assert beat("new", started=T0 + dt.timedelta(seconds=1)).state == "new"
    assert registry.lookup(["d1", "d2"]) == {}
    assert [node.node for node in registry.nodes()] == ["new"]
    assert beat("old").state == "superseded"
    assert [node.node for node in registry.nodes()] == ["new"]


def test_another_url_is_another_node():
    beat("n1")
    registry.put("n1", [session("d1")])
    beat("n2", "http://127.0.0.1:3901", T0 + dt.timedelta(hours=1))
    assert set(registry.lookup(["d1"])) == {"d1"}
    assert len(registry.nodes()) == 2


def test_an_expired_node_takes_its_devices_offline_and_comes_back_with_them():
    beat("n1")
    registry.put("n1", [session("d1")])
    expire("n1")
    assert registry.lookup(["d1"]) == {}
    assert registry.reap() == ["n1"]
    assert registry.sessions_of("n1") == {}
    heard = beat("n1", sessions=1)
    assert heard.state == "new"
    assert registry.put("n1", [session("d1")])[0].verdict == "ok"
    assert set(registry.lookup(["d1"])) == {"d1"}


def test_reaping_spares_a_device_that_moved_and_a_node_that_lives():
    beat("n1")
    beat("n2", "http://127.0.0.1:3901")
    registry.put("n1", [session("d1", 1), session("d2", 1)])
    registry.put("n2", [session("d1", 2)])
    expire("n1")
    assert registry.reap() == ["n1"]
    assert registry.reap() == []
    assert set(registry.lookup(["d1", "d2"])) == {"d1"}


def test_a_full_list_takes_out_what_it_does_not_name_but_for_what_is_just_being_admitted(monkeypatch):
    beat("n1")
    registry.put("n1", [session("d1"), session("d2"), session("d3")])
    assert registry.remove_missing("n1", ["d1-s1"]) == 0
    monkeypatch.setattr(registry, "ADMISSION_GRACE_MS", -1)
    assert registry.remove_missing("n1", ["d1-s1"]) == 2
    assert registry.online_devices() == {"d1"}


def test_pending_closes_are_told_until_the_session_is_gone():
    beat("n1")
    registry.put("n1", [session("d1")])
    registry.request_close([Held("d1", "n1", "d1-s1", URL)], code=4401, reason="revoked")
    for _ in range(2):
        assert beat("n1").closes == (registry.Pending("d1-s1", 4401, "revoked"),)
    assert registry.pending_closes("n1") == [registry.Pending("d1-s1", 4401, "revoked")]
    registry.remove([("d1", "d1-s1")])
    assert beat("n1").closes == ()


def test_a_pending_close_is_dropped_when_it_is_old(monkeypatch):
    beat("n1")
    registry.request_close([Held("d1", "n1", "s", URL)], code=4401, reason="r")
    monkeypatch.setattr(registry, "CLOSING_MS", -1)
    assert beat("n1").closes == ()
    assert registry.pending_closes("n1") == []


def test_a_heartbeat_tells_its_facts():
    registry.heartbeat(
        node="n1", url=URL, version="9.9", started_at=T0, sessions_count=3, streams_count=7, draining=True
    )
    (node,) = registry.nodes()
    assert (node.url, node.version, node.started_at, node.sessions, node.streams, node.draining) == (
        URL,
        "9.9",
        T0,
        3,
        7,
        True,
    )


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CHUNK", 2)


@pytest.mark.usefixtures("_small_chunks")
def test_long_lists_go_in_chunks():
    beat("n1")
    ids = [str(uuid.uuid4()) for _ in range(5)]
    assert len(registry.put("n1", [session(device) for device in ids])) == 5
    assert set(registry.lookup(ids)) == set(ids)
    assert registry.remove([(device, f"{device}-s1") for device in ids]) == 5


def test_nothing_is_left_in_memory_when_all_have_gone():
    beat("n1")
    registry.put("n1", [session("d1")])
    registry.request_close([Held("d1", "n1", "d1-s1", URL)], code=4401, reason="r")
    expire("n1")
    registry.reap()
    left = {key for key in redis.client().keys("*") if not key.endswith(f"url:{URL}")}
    assert left == set()


def test_a_registry_is_whole_some_time_after_it_was_lost(monkeypatch):
    assert registry.settled() is False
    assert registry.settled() is False
    monkeypatch.setattr(registry, "SETTLE_MS", 0)
    assert registry.settled() is True


# --- on their way -----------------------------------------------------------------------------------------------------
def moving(device: str) -> tuple[str, bool] | None:
    """Its session and whether it is on its way; None: neither online nor that."""
    entry = registry.lookup([device], moving=True).get(device)
    return None if entry is None else (entry.session, entry.moving)


def drain(device: str, epoch: int) -> None:
    """It had a tunnel at n1, and lost it to a drain."""
    registry.put("n1", [session(device, epoch)])
    assert registry.remove([(device, f"{device}-s{epoch}")], drained=True) == 1


def test_a_device_whose_daemon_drained_is_on_its_way_until_it_is_back():
    beat("n1")
    drain("d1", 3)
    assert moving("d1") == ("", True)
    assert registry.lookup(["d1"], moving=True)["d1"].epoch == 3
    assert registry.lookup(["d1"]) == {}
    registry.put("n1", [session("d1", 4)])
    assert moving("d1") == ("d1-s4", False)
    assert moving("d2") is None


def test_an_older_session_that_a_drain_ended_says_nothing_of_the_device():
    """The last words of one that was handed over come when its successor has been there for seconds."""
    beat("n1")
    registry.put("n1", [session("d1", 1)])
    registry.put("n1", [session("d1", 2)])
    assert registry.remove([("d1", "d1-s1")], drained=True) == 0
    registry.remove([("d1", "d1-s2")])
    assert moving("d1") is None


@pytest.mark.parametrize("what", ["lost", "revoked", "killed"])
def test_one_that_came_back_and_is_lost_then_is_not_on_its_way(what):
    """What is lost within the time that an agent may take to come back from a drain."""
    beat("n1")
    drain("d1", 1)
    registry.put("n2", [session("d1", 2)])  # a daemon that has not told of itself: it is on its way until it has
    beat("n2", "http://127.0.0.1:3901")
    assert moving("d1") == ("d1-s2", False)
    if what == "lost":
        registry.remove([("d1", "d1-s2")])
    elif what == "revoked":
        registry.end({"d1": 2})
    else:
        expire("n2")
        registry.reap()
    assert moving("d1") is None


@pytest.mark.parametrize("known", [True, False])
def test_being_back_ends_its_way(known):
    beat("n1")
    drain("d1", 1)
    registry.put("n1" if known else "n2", [session("d1", 2)])
    assert redis.client().exists(f"{registry.PREFIX}moving:d1") == (not known)


def test_one_that_is_unpaired_on_its_way_is_waited_for_no_more():
    beat("n1")
    drain("d1", 1)
    registry.end({"d1": 1})
    assert moving("d1") is None
    registry.remove([("d1", "d1-s1")], drained=True)  # told again: its daemon did not hear the answer
    assert moving("d1") is None


@pytest.mark.parametrize("drained", [True, False])
def test_a_full_list_may_be_quicker_than_the_last_words(drained, monkeypatch):
    """That the session is gone is known then, why is not: the node drains, so it is as likely as not on its way."""
    monkeypatch.setattr(registry, "ADMISSION_GRACE_MS", -1)
    beat("n1", draining=drained)
    registry.put("n1", [session("d1")])
    assert registry.remove_missing("n1", []) == 1
    assert moving("d1") == (("", True) if drained else None)
    registry.remove([("d1", "d1-s1")], drained=not drained)
    assert moving("d1") == (None if drained else ("", True))


def test_it_is_on_its_way_too_while_its_new_daemon_has_not_told_of_itself():
    beat("n1")
    drain("d1", 1)
    registry.put("n2", [session("d1", 2), session("d2")])
    assert (moving("d1"), moving("d2")) == (("", True), None)
    beat("n2", "http://127.0.0.1:3901")
    assert (moving("d1"), moving("d2")) == (("d1-s2", False), ("d2-s1", False))


@pytest.mark.parametrize("drained", [True, False])
def test_a_daemon_that_starts_again_tells_of_those_that_its_predecessor_sent_away(drained):
    """Its last words may be lost. One that was killed sent nobody away."""
    beat("n1")
    registry.put("n1", [session("d1")])
    if drained:
        beat("n1", draining=True)
        assert moving("d1") == ("d1-s1", True)
    beat("n2", started=T0 + dt.timedelta(seconds=1))
    assert moving("d1") == (("", True) if drained else None)
