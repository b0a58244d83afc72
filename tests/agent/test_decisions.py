"""Backoff and verdicts: how long to wait, and whether to go on at all."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tunnel.agent.backoff import Backoff, ceiling
from tunnel.agent.verdict import (
    RESTART_SPREAD,
    after_close,
    after_foreign_answer,
    after_refusal,
    parse_retry_after,
    read_envelope,
)
from tunnel.contract import error_envelope

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def test_delays_one_to_eight_grow_from_half_a_second() -> None:
    """The prototype mixed up its units: each of its delays was 30 s."""
    backoff = Backoff(draw=lambda: 1.0)
    assert [backoff.next_delay() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_ceiling_stays_for_ever() -> None:
    assert ceiling(10**9) == 30.0
    assert ceiling(0) == 0.5


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
def test_jitter_is_full(draw: float) -> None:
    backoff = Backoff(draw=lambda: draw)
    assert [backoff.next_delay() for _ in range(3)] == pytest.approx([0.5 * draw, 1.0 * draw, 2.0 * draw])


def test_real_jitter_differs() -> None:
    assert len({Backoff().next_delay() for _ in range(20)}) == 20


@pytest.mark.parametrize(("lasted", "attempt"), [(59.9, 3), (60.0, 0), (86400.0, 0)])
def test_only_a_stable_minute_starts_anew(lasted: float, attempt: int) -> None:
    backoff = Backoff(draw=lambda: 0.0)
    for _ in range(3):
        backoff.next_delay()
    backoff.connected_for(lasted)
    assert backoff.attempt == attempt


def test_refusals_are_tried_again_after_a_minute_doubling_to_an_hour() -> None:
    soonest, latest = Backoff(draw=lambda: 0.0), Backoff(draw=lambda: 0.999)
    assert [soonest.next_refusal_delay() for _ in range(8)] == [60, 120, 240, 480, 960, 1920, 3000, 3000]
    assert [round(latest.next_refusal_delay()) for _ in range(8)] == [72, 144, 288, 576, 1152, 2304, 3599, 3599]
    assert max(latest.next_refusal_delay() for _ in range(10_000)) <= 3600
    assert len({Backoff().next_refusal_delay() for _ in range(20)}) == 20
    assert Backoff(draw=lambda: 0.0).next_refusal_delay(at_least=300) == 300


def test_what_starts_the_series_of_refusals_anew() -> None:
    backoff = Backoff(draw=lambda: 0.0)
    for _ in range(3):
        backoff.next_refusal_delay()
    backoff.connected_for(59.0)
    assert backoff.next_refusal_delay() == 480
    backoff.connected_for(60.0)
    assert backoff.next_refusal_delay() == 60
    backoff.start_anew()
    assert backoff.next_refusal_delay() == 60


def test_a_box_that_is_replaced_by_its_copy_waits_longer_each_time() -> None:
    backoff = Backoff(draw=lambda: 0.0)
    waits = []
    for _ in range(6):
        waits.append((backoff.next_replaced_delay(), backoff.cloned))
        backoff.connected_for(130.0)  # until the copy comes back
    assert waits == [(30, False), (30, False), (60, True), (120, True), (120, True), (120, True)]
    backoff.connected_for(600.0)
    assert not backoff.cloned
    assert backoff.next_replaced_delay() == 30


def test_jitter_comes_on_top_of_what_was_asked_for() -> None:
    assert Backoff(draw=lambda: 0.0).next_delay(at_least=30) == 30.0
    assert Backoff(draw=lambda: 1.0).next_delay(at_least=30) == 30.5
    assert Backoff(draw=lambda: 1.0).next_delay(spread=2.0) == 2.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 17 ", 17.0),
        ("0", 0.0),
        ("99999999999999999999", 3600.0),
        ("Thu, 01 Jan 2026 12:01:00 GMT", 60.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2099 11:00:00 GMT", 3600.0),
        ("", None),
        (None, None),
        ("-1", None),
        ("soon", None),
        ("1.5", None),
        ("Thu, 01 Jan 99999999999999999999 12:00:00 GMT", None),
        ("Thu, 01 Jan 2026 12:00:00 +99999999999999999999", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, None, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("Tue, 01 Jan 2030 00:00:03 GMT", "Tue, 01 Jan 2030 00:00:00 GMT", 3.0),  # the box's clock is four years late
        ("Wed, 01 Jan 2020 00:00:03 GMT", "Wed, 01 Jan 2020 00:00:00 GMT", 3.0),
        ("Wed, 01 Jan 2020 00:00:03 GMT", "Wed, 01 Jan 2020 00:00:10 GMT", 0.0),
        ("Thu, 01 Jan 2026 12:01:00 GMT", "no date", 60.0),
        ("Thu, 01 Jan 2026 12:01:00 GMT", "Thu, 01 Jan 99999999999999999999 12:00:00 GMT", 60.0),
        ("9", "no date", 9.0),
    ],
)
def test_a_date_is_judged_by_the_answers_own(value: str, date: str, seconds: float) -> None:
    assert parse_retry_after(value, date, NOW) == seconds


def body_of(code: str) -> bytes:
    return json.dumps(error_envelope(code, "no", "req_1")).encode()


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "TOKEN_REVOKED"), (401, "UNAUTHENTICATED"), (403, "ACCOUNT_DISABLED"), (503, "OVERLOADED")],
)
def test_the_daemons_own_envelope(status: int, code: str) -> None:
    assert read_envelope(status, body_of(code)) == (code, "no")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Please log in</html>",
        b"[" * 60_000,
        b"[]",
        b'{"error": "forbidden"}',
        b'{"error": {"code": "ACCOUNT_DISABLED", "message": "no"}}',
        b'{"success": false, "error": {"code": "FORBIDDEN_BY_POLICY", "message": "no", "request_id": "r"}}',
        b'{"success": false, "error": {"code": ["ACCOUNT_DISABLED"], "message": "no", "request_id": "r"}}',
        b'{"success": false, "error": {"code": "ACCOUNT_DISABLED", "message": 1, "request_id": "r"}}',
        body_of("UNAUTHENTICATED"),  # a code that goes with another status
        b"\xff\xfe",
    ],
)
def test_what_is_not_the_daemons_envelope(body: bytes) -> None:
    assert read_envelope(403, body) is None


def test_a_peers_words_are_one_printable_line() -> None:
    said = json.dumps(error_envelope("ACCOUNT_DISABLED", "a\x1b[31mb\nc" + "x" * 1000, "req_1")).encode()
    found = read_envelope(403, said)
    assert found is not None
    for message in (found[1], after_close(4401, "a\x1b\nb").message, after_foreign_answer(302, "x\r\ny").message):
        assert message.isprintable()
        assert len(message) < 500


@pytest.mark.parametrize("status", [401, 403])
def test_the_daemons_refusals_are_tried_again_slowly(status: int) -> None:
    verdict = after_refusal(status, "TOKEN_REVOKED", "gone")
    assert verdict.refused
    assert "TOKEN_REVOKED" in verdict.message


@pytest.mark.parametrize("status", [400, 404, 405, 408, 409, 413, 426, 429, 431, 500, 502, 503, 504])
def test_every_other_refusal_is_tried_again_soon(status: int) -> None:
    assert not after_refusal(status, "CODE").refused


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 407, 426, 429, 500, 503, 511])
def test_another_server_cannot_refuse_us(status: int) -> None:
    verdict = after_foreign_answer(status)
    assert (verdict.again, verdict.at_least) == ("soon", 0.0)
    assert str(status) in verdict.message
    assert "wss://cloud.example.com/" in after_foreign_answer(301, "wss://cloud.example.com/").message


@pytest.mark.parametrize(("status", "least"), [(409, 30.0), (429, 5.0), (503, 0.0), (500, 0.0)])
def test_how_long_a_refusal_makes_us_wait(status: int, least: float) -> None:
    assert after_refusal(status, "CODE").at_least == least
    assert after_refusal(status, "CODE", retry_after=7.0).at_least == 7.0


@pytest.mark.parametrize(
    ("code", "again", "least", "spread"),
    [
        (4401, "refused", 0.0, 0.0),
        (4403, "refused", 0.0, 0.0),
        (4408, "soon", 0.0, 0.0),
        (4409, "replaced", 0.0, 0.0),
        (4429, "soon", 30.0, 0.0),
        (1012, "soon", 0.0, 2.0),
        (1001, "soon", 0.0, 2.0),
        (1006, "soon", 0.0, 0.0),
        (None, "soon", 0.0, 0.0),
        (1000, "soon", 0.0, 0.0),
        (1002, "soon", 0.0, 0.0),
        (4999, "soon", 0.0, 0.0),
    ],
)
def test_close_codes(code: int | None, again: str, least: float, spread: float) -> None:
    verdict = after_close(code, "because")
    assert (verdict.again, verdict.at_least, verdict.spread) == (again, least, spread)
    assert "because" in verdict.message
    if code in (4401, 4403):
        assert str(code) in verdict.message


def told_in_the_papers() -> dict[int, str]:
    """Close code → what `docs/wire.md` says that the agent does."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "wire.md").read_text()
    section = text[text.index("## 8.") : text.index("## 9.")]
    rows = re.findall(r"^\| (\d{4})\b[^|]*\|[^|]*\| ([^|]*) \|$", section, re.MULTILINE)
    return {int(code): does for code, does in rows}


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1009, 1012, 4401, 4403, 4408, 4409, 4429])
def test_the_papers_say_what_is_done(code: int) -> None:
    says, does = told_in_the_papers()[code], after_close(code)
    assert ("after a minute, doubling to an hour" in says) == does.refused
    assert ("at least 30 s" in says) == (does.at_least == 30 or does.again == "replaced")
    assert ("soon" in says) == (does.spread == RESTART_SPREAD)
    plain = does.again == "soon" and not does.at_least and not does.spread
    assert ("dials again with backoff" in says) == plain
    assert "stops" not in says
