"""How large a request may be, on every lane, with a limit small enough to be reached."""

from __future__ import annotations

import hashlib

import pytest

from tests.apps.proxy.kit import Peer, until
from tests.apps.proxy.stack import EVERY_CARRIER, Lane

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_CARRIER

BODY_MAX = 1 << 20
API_SETTINGS = {"PROXY_BODY_MAX_BYTES": str(BODY_MAX)}
TOO_LARGE = {"body": [f"At most {BODY_MAX} bytes (VISIONA_PROXY_BODY_MAX_BYTES)."]}
BODY = bytes(range(256)) * (BODY_MAX // 256)
WHOLE = hashlib.sha256(BODY).hexdigest()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def note_end(lane: Lane, path: str) -> list[str]:
    """How the requests to that path end at the box, as it sees them: `whole` or `reset`. It answers the whole ones."""
    ends: list[str] = []

    def take(peer: Peer) -> None:
        try:
            for _ in peer.body():
                pass
        except OSError:
            ends.append("reset")
        else:
            ends.append("whole")
            peer.answer(b"whole")

    lane.box.on(path, take)
    return ends


def test_the_largest_body_passes(lane: Lane) -> None:
    got = lane.ask("PUT", "/x", body=BODY)
    assert (got.status, got.json["size"], got.json["sha256"]) == (200, BODY_MAX, WHOLE)


def test_the_largest_body_in_chunks_passes(lane: Lane) -> None:
    """The limit is of what the chunks hold, not of what frames them."""
    with lane.wire() as wire:
        wire.send(lane.head("PUT", "/x", "Transfer-Encoding: chunked"))
        for start in range(0, BODY_MAX, 1 << 14):
            wire.send(chunk(BODY[start : start + (1 << 14)]))
        wire.send(b"0\r\n\r\n")
        got = wire.read()
        assert (got.status, got.json["size"], got.json["sha256"]) == (200, BODY_MAX, WHOLE)
        wire.send(lane.head("GET", "/next"))
        assert wire.read().json["line"] == "GET /next HTTP/1.1"


def test_a_length_over_the_limit_is_refused_before_a_box_is_asked(lane: Lane) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("PUT", "/x", f"Content-Length: {BODY_MAX + 1}"))
        got = wire.read()
    assert (got.status, got.code) == (413, "PAYLOAD_TOO_LARGE")
    assert got.json["error"]["details"] == TOO_LARGE
    assert lane.ask("GET", "/behind").status == 200
    assert [head.split(b" ")[1] for head in lane.box.heads] == [b"/behind"]


def test_a_length_over_the_limit_asks_for_no_body(lane: Lane) -> None:
    """Who asks first (`Expect`) is told no, never 100."""
    with lane.wire() as wire:
        wire.send(lane.head("PUT", "/x", f"Content-Length: {BODY_MAX + 1}", "Expect: 100-continue"))
        got = wire.read_head()
    assert got.status == 413
    assert lane.box.heads == []


@pytest.mark.parametrize("over", ["one byte in a chunk of its own", "one large chunk"])
def test_chunks_over_the_limit_are_refused_and_the_box_sees_a_reset(lane: Lane, over: str) -> None:
    ends = note_end(lane, "/x")
    with lane.wire() as wire:
        wire.send(lane.head("PUT", "/x", "Transfer-Encoding: chunked"))
        data = chunk(BODY + b"x") if over == "one large chunk" else chunk(BODY) + chunk(b"x")
        wire.send(data[:1000])
        until(
            lambda: lane.box.heads
        )  # or the reset may come before the agent has reached the box, which then sees none
        wire.send(data[1000:])
        got = wire.read()
    assert (got.status, got.code) == (413, "PAYLOAD_TOO_LARGE")
    assert got.json["error"]["details"] == TOO_LARGE
    assert got.one("connection") == "close"  # where the rest of the body would end nobody knows
    until(lambda: ends)
    assert ends == ["reset"]


def test_an_answer_has_no_limit(lane: Lane) -> None:
    lane.box.on("/large", lambda peer: peer.answer(BODY + b"x"))
    got = lane.ask("GET", "/large")
    assert (got.status, len(got.body), got.complete) == (200, BODY_MAX + 1, True)
