"""The log: whole lines of JSON, nothing lost at the end, and never in the way."""

from __future__ import annotations

import io
import logging

import orjson
import pytest
import trio
import trio.testing

from tunnel.logs import JsonLog, capture_libraries


def lines(out: io.BytesIO) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_json_with_its_facts_and_levels_are_kept() -> None:
    out = io.BytesIO()
    log = JsonLog(out, level="warning", node="n1")
    log.debug("a")
    log.info("b")
    log.warning("c", error=ValueError("odd\nthings"), bytes_up=3)
    log.error("d")
    assert [line["event"] for line in lines(out)] == ["c", "d"]
    first = lines(out)[0]
    assert (first["node"], first["level"], first["service"]) == ("n1", "warning", "tunnel")
    assert (first["error"], first["bytes_up"]) == ("odd\nthings", 3)
    assert str(first["at"]).endswith("Z")


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_line_written_just_before_the_end_is_not_lost(turns: int) -> None:
    out = io.BytesIO()
    log = JsonLog(out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        log.info("last")
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert [line["event"] for line in lines(out)] == ["last"]


async def test_a_reader_that_is_slow_costs_the_oldest_lines_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.logs._MAX_LINES", 5)
    out = io.BytesIO()
    log = JsonLog(out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(8):
            log.info("n", number=number)
        assert log.dropped == 3
        nursery.cancel_scope.cancel()
    assert [line["number"] for line in lines(out)] == [3, 4, 5, 6, 7]


def test_a_log_that_nobody_reads_any_more_stops_nothing() -> None:
    out = io.BytesIO()
    log = JsonLog(out)
    out.close()
    log.error("x")
    assert log.dropped == 1


def test_libraries_speak_the_same_language() -> None:
    out = io.BytesIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        capture_libraries(JsonLog(out))
        logging.getLogger("a.client").info("HTTP Request: POST http://x?token=secret")
        logging.getLogger("some.library").warning("odd")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert [(line["logger"], line["message"]) for line in lines(out)] == [("some.library", "odd")]
