"""The lines of the hot path: the same as those of everybody else, but for what they cost."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from apps.common.observability import log_line
from apps.common.observability.log_line import HotLog

FACTS: dict[str, Any] = {"path": "/storage/secret", "token": "vAu_" + "0" * 32, "count": 3, "none": None}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What HotLog wrote."""
    found: list[dict[str, Any]] = []

    def write(line: bytes) -> None:
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        found.append(json.loads(line))

    monkeypatch.setattr(log_line, "write", write)
    return found


def by_structlog(name: str, event: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The same line the long way."""
    root, sink = logging.getLogger(), io.StringIO()
    real = next(h for h in root.handlers if isinstance(h.formatter, structlog.stdlib.ProcessorFormatter))
    copy = logging.StreamHandler(sink)
    copy.setFormatter(real.formatter)
    root.addHandler(copy)
    try:
        structlog.get_logger(name).info(event, **facts)
    finally:
        root.removeHandler(copy)
    line: dict[str, Any] = json.loads(sink.getvalue())
    return line


def test_a_line_is_the_one_that_structlog_writes(lines: list[dict[str, Any]]) -> None:
    facts = FACTS | {"text": "a\nb \u4e2d"}
    with structlog.contextvars.bound_contextvars(request_id="the-id"):
        HotLog("visiona.request").info("request", **facts)
        other = by_structlog("visiona.request", "request", facts)
    (mine,) = lines
    assert mine["path"] == "/storage/***"
    assert mine["token"] == "vAu_***"
    assert mine["request_id"] == "the-id"
    moment = "2026-01-01T00:00:00.000000Z"
    assert len(mine["time"]) == len(moment)
    assert mine | {"time": moment} == other | {"time": moment}


def test_a_level_that_is_not_wanted_writes_nothing(lines: list[dict[str, Any]]) -> None:
    logger = logging.getLogger("visiona.quiet")
    log = HotLog("visiona.quiet")
    try:
        logger.setLevel(logging.WARNING)
        log.info("request")
        assert lines == []
        logger.setLevel(logging.INFO)
        log.info("request")
    finally:
        logger.setLevel(logging.NOTSET)
    assert [line["event"] for line in lines] == ["request"]


@pytest.mark.parametrize("closed", [False, True])
def test_a_line_that_cannot_be_written_fails_nobody(monkeypatch: pytest.MonkeyPatch, *, closed: bool) -> None:
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - closed below, on purpose before its use
    monkeypatch.setattr("sys.stderr", SimpleNamespace(buffer=full))
    if closed:
        full.close()
    try:
        HotLog("visiona.request").info("request", status=200)
    finally:
        full.close()


def test_a_line_goes_out_at_once(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    HotLog("visiona.request").info("request", status=200)
    assert json.loads(capfdbinary.readouterr().err)["status"] == 200
