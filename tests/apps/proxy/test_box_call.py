"""Calls of our own to a box: what they send, what they take for an answer, and what ends them."""

from __future__ import annotations

import hashlib
import json
import threading
import time

import pytest

from apps.tunnels.box_call import ANSWER_MAX, Call, CallFailed, Reply, Until, call_box
from apps.tunnels.client_request import Limits
from apps.tunnels.route import Route
from tests.apps.proxy.kit import Peer
from tests.apps.proxy.stand_in import StandInDaemon

LIMITS = Limits(open_seconds=5, head_seconds=30, idle_seconds=30)


class Word:
    """A Control that a test speaks by."""

    ended = ""


def ask(daemon: StandInDaemon, call: Call, control=None, limits=LIMITS, session="session-1") -> Reply:
    route = Route("device", daemon.url, session, 1)
    return call_box(route, call, control=control or Until(time.monotonic() + 30), limits=limits, secret="s")


def failed(daemon: StandInDaemon, call: Call, **how) -> str:
    with pytest.raises(CallFailed) as caught:
        ask(daemon, call, **how)
    return caught.value.code


def test_a_call_and_its_answer(daemon, box):
    reply = ask(daemon, Call("GET", "/api/devices/scan", "req_1", fields=(("X-More", "1"),)))
    said = json.loads(reply.body)
    assert (reply.status, reply.value("content-type")) == (200, "application/json")
    assert said["line"] == "GET /api/devices/scan HTTP/1.1"
    named = {name.lower(): value for name, value in said["fields"]}
    assert (named["x-request-id"], named["x-more"], named["connection"]) == ("req_1", "1", "close")
    assert "content-length" not in named


def test_a_large_body_goes_out_in_pieces_and_is_counted(daemon):
    pieces, seen = [bytes([index]) * 100_000 for index in range(50)], []
    call = Call("PUT", "/x", "req_1", body=iter(pieces), length=5_000_000, sent=seen.append)
    said = json.loads(ask(daemon, call).body)
    assert said["size"] == 5_000_000
    assert said["sha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert seen == sorted(seen)
    assert seen[-1] == 5_000_000


def test_a_box_may_answer_before_it_took_the_body(daemon, box):
    def refuse(peer: Peer) -> None:
        peer.answer(b"", "409 Conflict", "Upload-Offset: 7")
        peer.wait_gone(30)  # to close with bytes unread would be a reset, which may overtake the answer

    box.on("/x", refuse)
    reply = ask(daemon, Call("PUT", "/x", "r", body=(b"x" * 65536 for _ in range(1600)), length=65536 * 1600))
    assert (reply.status, reply.value("Upload-Offset")) == (409, "7")


@pytest.mark.parametrize("pieces", [[b"12345"], [b"1234567890", b"1"], []])
def test_a_body_of_another_length_is_our_fault(daemon, box, pieces):
    assert failed(daemon, Call("PUT", "/x", "r", body=iter(pieces), length=8)) == "INTERNAL_ERROR"


def test_what_the_daemon_says(daemon):
    assert failed(daemon, Call("GET", "/x", "r"), session="gone") == "TUNNEL_DISCONNECTED"
    daemon.refuse = ("OVERLOADED", False)
    assert failed(daemon, Call("GET", "/x", "r")) == "OVERLOADED"
    daemon.close()
    assert failed(daemon, Call("GET", "/x", "r")) == "TUNNEL_UNAVAILABLE"


@pytest.mark.parametrize(
    "script,code",
    [
        (lambda peer: None, "AGENT_UNREACHABLE"),
        (lambda peer: peer.sock.sendall(b"HTTP/1.1 200"), "AGENT_BAD_RESPONSE"),
        (lambda peer: peer.sock.sendall(b"no http at all\r\n\r\n"), "AGENT_BAD_RESPONSE"),
        (lambda peer: peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123"), "AGENT_BAD_RESPONSE"),
        (lambda peer: peer.answer(b"x" * (ANSWER_MAX + 1)), "AGENT_BAD_RESPONSE"),
    ],
)
def test_what_a_broken_box_is(daemon, box, script, code):
    box.on("/x", script)
    assert failed(daemon, Call("GET", "/x", "r")) == code


def test_a_box_that_says_nothing(daemon, box):
    box.on("/x", lambda peer: peer.wait_gone(30) and None)
    limits = Limits(open_seconds=5, head_seconds=0.3, idle_seconds=30)
    assert failed(daemon, Call("GET", "/x", "r"), limits=limits) == "TUNNEL_TIMEOUT"
    assert failed(daemon, Call("GET", "/x", "r"), control=Until(time.monotonic() + 0.3)) == "TUNNEL_TIMEOUT"


def test_a_word_from_outside_ends_it_and_resets_the_stream(daemon, box):
    word, gone, here = Word(), [], threading.Event()

    def stay(peer: Peer) -> None:
        here.set()
        gone.append(peer.wait_gone(30))

    box.on("/x", stay)

    def end() -> None:
        assert here.wait(30)
        word.ended = "CANCELLED"

    thread = threading.Thread(target=end)
    thread.start()
    assert failed(daemon, Call("GET", "/x", "r"), control=word) == "CANCELLED"
    thread.join()
    deadline = time.monotonic() + 30
    while not gone and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone == ["reset"]
