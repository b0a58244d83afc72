"""Agents that are processes, for tests of the daemon's end: started, watched, ended."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio


class AgentProcess:
    """A running agent; `events` are the JSON lines that it wrote, `log` is all that it wrote."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.log = ""
        self._news = trio.Event()

    async def event(self, name: str, seconds: float = 20, count: int = 1) -> dict[str, Any]:
        """The `count`-th event of that name, awaited."""
        with trio.move_on_after(seconds):
            while True:
                found = [event for event in self.events if event.get("event") == name]
                if len(found) >= count:
                    return found[count - 1]
                self._news = trio.Event()
                await self._news.wait()
        raise AssertionError(f"no event {name!r} within {seconds} s; it said {self.events[-5:]}\n{self.log[-2000:]}")

    async def read(self, output: trio.abc.ReceiveStream | None) -> None:
        assert output is not None
        rest = b""
        async for data in output:
            self.log += data.decode(errors="replace")
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.events.append({"event": line.decode(errors="replace")})
            self._news.set()


@asynccontextmanager
async def agent_process(
    command: Sequence[str | Path], env: dict[str, str] | None = None, cwd: Path | None = None
) -> AsyncIterator[AgentProcess]:
    """Run `command` while the block runs; killed at its end if it has not ended by itself."""
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd
        )
        agent = AgentProcess(process)
        nursery.start_soon(agent.read, process.stdout)
        nursery.start_soon(agent.read, process.stderr)
        try:
            yield agent
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.wait()
            nursery.cancel_scope.cancel()
