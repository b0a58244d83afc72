"""Backoff and verdicts: how long to wait, and whether to go on at all."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tunnel.agent.backoff import Backoff, ceiling
from tunnel.agent.verdict import RESTART_SPREAD, after_close, after_refusal, parse_retry_after

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
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(("status", "exit_code"), [(401, 3), (403, 4)])
def test_these_refusals_end_the_agent(status: int, exit_code: int) -> None:
    assert after_refusal(status, "TOKEN_REVOKED", "gone").exit_code == exit_code


@pytest.mark.parametrize("status", [200, 301, 400, 404, 405, 407, 408, 409, 413, 426, 429, 431, 500, 502, 503, 504])
def test_every_other_refusal_is_tried_again(status: int) -> None:
    assert after_refusal(status).exit_code is None


@pytest.mark.parametrize(("status", "least"), [(409, 30.0), (429, 5.0), (503, 0.0), (500, 0.0)])
def test_how_long_a_refusal_makes_us_wait(status: int, least: float) -> None:
    assert after_refusal(status).at_least == least
    assert after_refusal(status, retry_after=7.0).at_least == 7.0


@pytest.mark.parametrize(
    ("code", "exit_code", "least", "spread"),
    [
        (4401, 3, 0.0, 0.0),
        (4403, 4, 0.0, 0.0),
        (4408, None, 0.0, 0.0),
        (4409, None, 30.0, 0.0),
        (4429, None, 30.0, 0.0),
        (1012, None, 0.0, 2.0),
        (1001, None, 0.0, 2.0),
        (1006, None, 0.0, 0.0),
        (None, None, 0.0, 0.0),
        (1000, None, 0.0, 0.0),
        (1002, None, 0.0, 0.0),
        (4999, None, 0.0, 0.0),
    ],
)
def test_close_codes(code: int | None, exit_code: int | None, least: float, spread: float) -> None:
    verdict = after_close(code, "because")
    assert (verdict.exit_code, verdict.at_least, verdict.spread) == (exit_code, least, spread)
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
    assert ("stops" in says) == (does.exit_code is not None)
    assert ("at least 30 s" in says) == (does.at_least == 30)
    assert ("soon" in says) == (does.spread == RESTART_SPREAD)
    assert ("dials again with backoff" in says) == (does.exit_code is None and not does.at_least and not does.spread)
