"""Each worker's threads on a core of their own, in real gunicorn processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.system.gunicorn_worker_kit import Server, get
from tests.system.stack import eventually

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine gives us one core"),
]


def cores_of(worker: int) -> set[str]:
    """Where its threads may run."""
    found = set()
    for status in Path(f"/proc/{worker}/task").glob("*/status"):
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("Cpus_allowed_list"))
        found.add(line.split()[1])
    return found


def workers_of(server: Server) -> dict[int, set[str]]:
    """The cores of each worker's threads."""
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return {int(pid): cores_of(int(pid)) for pid in pids}


def settled(server: Server) -> dict[int, set[str]]:
    """The two workers, once each stays on one core; else nothing."""
    try:
        found = workers_of(server)
    except (OSError, ValueError):
        return {}  # one of them is just going
    alone = all(len(cores) == 1 and all(core.isdigit() for core in cores) for cores in found.values())
    return found if alone and len(found) == 2 else {}


def test_two_workers_have_two_cores_and_who_comes_anew_has_the_one_that_is_free(tmp_path: Path) -> None:
    server = Server(tmp_path / "log.jsonl", workers=2)
    try:
        server.wait_ready()
        first = eventually(lambda: settled(server), 30, "two workers that stay")
        one, other = first
        assert first[one] != first[other]
        os.kill(one, signal.SIGKILL)
        anew = eventually(lambda: (found := settled(server)) and one not in found and found, 30, "a new worker")
        assert anew.pop(other) == first[other]
        assert list(anew.values()) == [first[one]]
        assert get(server, "/")[0].startswith(b"HTTP/1.1 200")
    finally:
        server.stop()
