"""Runs programs for as long as its block lasts: started, waited for, started again when they die, stopped in order."""

import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from cloud.embedded.guarded import Guard
from cloud.embedded.program import Program, last_failure, last_words, signal_group, start_options
from cloud.supervisor.decisions import STOP_STAGES, Restarts, died_line, ending, gone_line

READY_SECONDS: Final = 60.0
SILENT_SECONDS: Final = 10.0
"""How long a start may take before the user is told what it waits for."""
_TICK: Final = 0.05


class StartError(Exception):
    """Something did not start: ``str(error)`` is the one line for the user, ``status`` its exit status (0: none)."""

    def __init__(self, line: str, status: int = 0) -> None:
        super().__init__(line)
        self.status = status


@dataclass(slots=True)
class _Care:
    """One program and what became of it. ``over`` is set when nobody starts it any more."""

    program: Program
    on_start: Callable[[str, int], None] | None = None
    process: trio.Process | None = None
    was_ready: bool = False
    status: int = 0
    log_start: int = 0
    over: trio.Event = field(default_factory=trio.Event)


class Engine:
    """The programs of one ``make dev``. Made by ``running``."""

    def __init__(self, nursery: trio.Nursery, guard: Guard, say: Callable[[str], None]) -> None:
        self._nursery = nursery
        self._guard = guard
        self._say = say
        self._cares: dict[str, _Care] = {}
        self._stop = trio.Event()

    async def start(self, program: Program, on_start: Callable[[str, int], None] | None = None) -> None:
        """Start it, keep it running, and return when it is ready.

        ``on_start`` is told of each of its processes (name, id). Raises StartError when it ends first, or is not
        ready within ``READY_SECONDS``.
        """
        size = program.log.stat().st_size if program.log.exists() else 0
        care = self._cares[program.name] = _Care(program, on_start, log_start=size)
        self._nursery.start_soon(self._keep, care)
        tell_at = trio.current_time() + SILENT_SECONDS
        with trio.move_on_after(READY_SECONDS):
            while not await self._is_ready(care):
                if care.over.is_set():
                    words = f"{last_words(program.log)} (more in {program.log})"
                    raise StartError(f"{program.name} {ending(care.status)}: {words}", care.status)
                if trio.current_time() > tell_at:
                    tell_at += SILENT_SECONDS
                    self._say(f"still waiting for {program.name}{self._causes(program.name)}")
                await trio.sleep(_TICK)
            care.was_ready = True
            return
        told = f"{program.name} was not ready within {READY_SECONDS:g} s{self._causes(program.name)}"
        raise StartError(f"{told} (see {program.log})")

    def _causes(self, name: str) -> str:
        """What the programs logged of failures since they were started: its own first, since one part's log often
        holds the reason for another's waiting."""
        own = sorted(self._cares.items(), key=lambda item: item[0] != name)
        found = ((each, last_failure(care.program.log, care.log_start)) for each, care in own)
        told = [f"{each} says {words!r}" for each, words in found if words]
        return f": {'; '.join(told)}" if told else ""

    async def _is_ready(self, care: _Care) -> bool:
        if care.process is None or care.process.returncode is not None:
            return False
        return await trio.to_thread.run_sync(care.program.ready, care.process.pid)

    async def _keep(self, care: _Care) -> None:
        """A program's whole life. It ends by ``stop`` alone, hence the shield: a cancel would orphan the process."""
        restarts = Restarts()
        with trio.CancelScope(shield=True):
            while not self._stop.is_set():
                begun = trio.current_time()
                care.status = await self._run(care)
                if self._stop.is_set() or not care.was_ready:
                    break
                if care.status in care.program.final:
                    self._say(gone_line(care.program.name, care.status, last_words(care.program.log)))
                    break
                pause = restarts.delay(trio.current_time() - begun)
                self._say(died_line(care.program.name, care.status, pause))
                with trio.move_on_after(pause):
                    await self._stop.wait()
            care.over.set()

    async def _run(self, care: _Care) -> int:
        """Run it once, to its end; its status."""
        program = care.program
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with program.log.open("ab") as log:
            try:
                process = await trio.lowlevel.open_process(
                    program.argv, stdout=log, stderr=subprocess.STDOUT, **start_options(program)
                )
            except OSError as error:
                log.write(f"{program.argv[0]} cannot be started: {error.strerror}\n".encode())
                return 127
        self._guard.add(process.pid, program.stop_signal)
        care.process = process
        if care.on_start is not None:
            care.on_start(program.name, process.pid)
        if self._stop.is_set():
            process.send_signal(program.stop_signal)
        status = await process.wait()
        # Its children (gunicorn's workers) hold its ports: they go with it, however it went.
        signal_group(process.pid, signal.SIGKILL)
        self._guard.remove(process.pid)
        return status

    async def stop(self) -> None:
        """Stop everything, stage by stage, within five seconds."""
        self._stop.set()
        begun = trio.current_time()
        for names, latest in STOP_STAGES:
            async with trio.open_nursery() as nursery:
                for name in names & self._cares.keys():
                    nursery.start_soon(self._stop_one, self._cares[name], begun + latest)

    async def _stop_one(self, care: _Care, deadline: float) -> None:
        if care.process is not None and care.process.returncode is None:
            with suppress(ProcessLookupError):
                care.process.send_signal(care.program.stop_signal)
        with trio.CancelScope(deadline=deadline):
            await care.over.wait()
        if not care.over.is_set():
            if care.process is not None:
                signal_group(care.process.pid, signal.SIGKILL)
            await care.over.wait()


@asynccontextmanager
async def running(say: Callable[[str], None], held: Sequence[int] = ()) -> AsyncIterator[Engine]:
    """An engine whose programs are stopped, in order, when the block is left, and do not outlive this process.

    ``held``: descriptors of locks that shall be free only when everything is gone.
    """
    with Guard(held) as guard:
        async with trio.open_nursery() as nursery:
            engine = Engine(nursery, guard, say)
            try:
                yield engine
            finally:
                with trio.CancelScope(shield=True):
                    await engine.stop()
