"""The engine with small real processes: readiness, restarts, order and time of the stop, no orphans."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
import trio

from cloud.embedded.program import Program
from cloud.supervisor.engine import StartError, running

pytestmark = pytest.mark.system

# Ready once its file exists; each start appends its process id.
SERVE = """
import os, signal, sys, time
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
print("serving", flush=True)
time.sleep(600)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVE
# A child that outlives its parent unless somebody ends the whole group, as gunicorn's workers do.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "a").write(f"{os.getpid()}\\n{child.pid}\\n")
time.sleep(600)
"""
LAST = "import sys, time; print('config.toml: bad value', flush=True); sys.exit(4)"


def pids(folder: Path, name: str) -> list[int]:
    path = folder / f"{name}.pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def program(
    folder: Path, name: str, code: str = SERVE, *, lines: int = 1, final: frozenset[int] = frozenset()
) -> Program:
    return Program(
        name=name,
        argv=(sys.executable, "-c", code, str(folder / f"{name}.pids")),
        cwd=folder,
        env=dict(os.environ),
        log=folder / f"{name}.log",
        ready=lambda pid: pid in pids(folder, name) and len(pids(folder, name)) >= lines,
        final=final,
    )


async def wait_for_starts(folder: Path, name: str, count: int) -> None:
    with trio.fail_after(15):
        while len(pids(folder, name)) < count:
            await trio.sleep(0.02)


async def wait_for_line(said: list[str], part: str) -> str:
    with trio.fail_after(15):
        while True:
            for line in said:
                if part in line:
                    return line
            await trio.sleep(0.02)


async def test_started_ready_and_gone_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    async with running(lambda _line: None) as engine:
        await engine.start(program(tmp_path, "api"), lambda name, pid: seen.append((name, pid)))
        (pid,) = pids(tmp_path, "api")
        assert seen == [("api", pid)]
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        assert os.getpgid(pid) == pid  # out of reach of the terminal's Ctrl-C
    assert not psutil.pid_exists(pid)
    assert (tmp_path / "api.log").read_text() == "serving\n"


async def test_a_dead_program_is_started_again_with_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    async with running(said.append) as engine:
        await engine.start(program(tmp_path, "tunnel"))
        os.kill(pids(tmp_path, "tunnel")[0], signal.SIGKILL)
        await wait_for_starts(tmp_path, "tunnel", 2)
    assert said == ["tunnel was ended by SIGKILL; it is started again in 0.5 s"]
    assert not any(psutil.pid_exists(pid) for pid in pids(tmp_path, "tunnel"))


async def test_children_of_a_dead_program_go_before_it_starts_again(tmp_path: Path) -> None:
    async with running(lambda _line: None) as engine:
        await engine.start(program(tmp_path, "api", FAMILY, lines=2))
        parent, child = pids(tmp_path, "api")
        os.kill(parent, signal.SIGKILL)
        await wait_for_starts(tmp_path, "api", 4)
        assert not runs(child)
    with trio.fail_after(10):  # a killed grandchild is the kernel's to clear up, in its own time
        while any(map(runs, pids(tmp_path, "api"))):
            await trio.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process is there and not dead already."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_what_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    async with running(lambda _line: None) as engine:
        with pytest.raises(StartError, match=r"worker ended with status 4: config.toml: bad value \(more in") as caught:
            await engine.start(program(tmp_path, "worker", LAST))
    assert caught.value.status == 4


async def test_what_cannot_be_started_at_all_is_told(tmp_path: Path) -> None:
    missing = program(tmp_path, "worker")
    missing = Program(missing.name, ("/nowhere/at/all",), tmp_path, {}, missing.log, missing.ready)
    async with running(lambda _line: None) as engine:
        with pytest.raises(StartError, match="/nowhere/at/all cannot be started: No such file"):
            await engine.start(missing)


async def test_a_final_status_ends_the_restarts(tmp_path: Path) -> None:
    code = SERVE.replace("time.sleep(600)", "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3)); time.sleep(600)")
    said: list[str] = []
    async with running(said.append) as engine:
        await engine.start(program(tmp_path, "agent", code, final=frozenset({3})))
        os.kill(pids(tmp_path, "agent")[0], signal.SIGUSR1)
        await wait_for_line(said, "agent ended with status 3 and is not started again: serving")
    assert len(pids(tmp_path, "agent")) == 1


async def test_the_stop_keeps_its_order(tmp_path: Path) -> None:
    ends: list[str] = []

    async def note(name: str, pid: int) -> None:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await trio.sleep(0.001)
        ends.append(name)

    slow = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.15), sys.exit(0)))" + SERVE
    names = ["postgres", "tunnel", "api", "agent"]
    async with trio.open_nursery() as nursery, running(lambda _line: None) as engine:
        for name in names:
            await engine.start(program(tmp_path, name, slow))
            nursery.start_soon(note, name, pids(tmp_path, name)[0])
    assert ends == ["agent", "api", "tunnel", "postgres"]


async def test_stubborn_programs_are_killed_within_five_seconds(tmp_path: Path) -> None:
    names = ["postgres", "tunnel", "worker", "api", "agent"]
    async with running(lambda _line: None) as engine:
        for name in names:
            await engine.start(program(tmp_path, name, STUBBORN))
        begun = trio.current_time()
    assert trio.current_time() - begun < 5
    assert not any(psutil.pid_exists(pids(tmp_path, name)[0]) for name in names)


async def test_a_stop_during_the_pause_before_a_restart_starts_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    async with running(said.append) as engine:
        await engine.start(program(tmp_path, "api"))
        os.kill(pids(tmp_path, "api")[0], signal.SIGKILL)
        await wait_for_line(said, "started again")
        begun = trio.current_time()
    assert trio.current_time() - begun < 0.4
    assert len(pids(tmp_path, "api")) == 1


async def test_an_error_in_the_block_stops_everything_too(tmp_path: Path) -> None:
    with pytest.RaisesGroup(ValueError):
        async with running(lambda _line: None) as engine:
            await engine.start(program(tmp_path, "api"))
            raise ValueError
    assert not psutil.pid_exists(pids(tmp_path, "api")[0])


async def test_a_cancel_leaves_no_orphan(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with running(lambda _line: None) as engine:
            await engine.start(program(tmp_path, "api"))
            scope.cancel()
            await trio.sleep_forever()
    assert not psutil.pid_exists(pids(tmp_path, "api")[0])
