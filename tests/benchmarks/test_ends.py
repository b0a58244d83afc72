"""The processes that the wire is measured with do what the scenarios count on. Nothing is timed."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import BenchError
from benchmarks.scenarios import abuse
from benchmarks.wire.parts import dialling, linked, listening, pour

MIB = 1024 * 1024


@pytest.mark.parametrize("line", [{"delay": 0.001}, {"rate": 8.0 * MIB, "buffer": 4096, "bound": 8192}])
def test_bulk_comes_whole_through_a_line(tmp_path: Path, line: dict[str, Any]) -> None:
    with ExitStack() as stack:
        daemon, port = stack.enter_context(listening(tmp_path))
        port = stack.enter_context(linked(tmp_path, port, **line))
        agent = stack.enter_context(dialling(tmp_path, port))
        for direction in ("down", "up"):
            assert pour(daemon, agent.pid, direction, MIB)["mb_s"] > 0
        agent.stop()
        assert daemon.ask(60, do="ended")["kind"]
        with pytest.raises(BenchError, match=r"nothing|ended"):
            daemon.ask(0.2, do="carry", streams=[])


def test_abuse_is_ended_and_honesty_is_not(tmp_path: Path) -> None:
    flags = ("--accept",)
    with listening(tmp_path) as (refusing, first), listening(tmp_path, flags=flags) as (taking, second):
        assert abuse.flood(refusing, first, 1)["streams"] > 100
        assert abuse.flood(taking, second, 1)["streams"] > 100
        assert abuse.visit(taking, second, 2)["frames"] == 3 * abuse.HONEST
        assert abuse.crumbs(taking, second, 64 * 1024)["frames"] == abuse.WINDOW + 2
    assert abuse.unread(tmp_path)["grown_mb"] < 10
