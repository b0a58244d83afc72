"""What scenarios share: the effort, the upstream, one system and one Go reference, each started when asked for."""

import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.build import program
from benchmarks.effort import Effort
from benchmarks.peers import Reference
from benchmarks.processes import Running, free_port, listens
from benchmarks.sides import Side
from benchmarks.system import Agent, System, running_system

NO_FAST_LANE = "The fast lane did not answer, so the DRF lane stands in its place."


class Bench:
    """One run."""

    def __init__(self, effort: Effort, var: Path, stack: ExitStack) -> None:
        self.effort, self.var, self._stack = effort, var, stack
        self.upstream = free_port()
        self.upstream_process = Running(
            [program("upstream"), "-listen", f"127.0.0.1:{self.upstream}"], var / "log" / "upstream.log"
        )
        stack.callback(self.upstream_process.stop)
        self.upstream_process.wait_until(lambda: listens(self.upstream), 10, "the upstream listens")
        self._system: System | None = None
        self._reference: tuple[Reference, Agent] | None = None
        self._box: tuple[str, str] | None = None
        self._agent: Agent | None = None
        self._agent_of = 0

    def say(self, line: str) -> None:
        """A line for who watches."""
        sys.stderr.write(f"bench: {line}\n")
        sys.stderr.flush()

    @property
    def system(self) -> System:
        """Ours."""
        if self._system is None:
            self.say("starting PostgreSQL, Valkey, daemon and API")
            self._system = self._stack.enter_context(running_system(self.var / "system", self.upstream))
        return self._system

    def box(self) -> tuple[str, Agent]:
        """A device with a Go agent that keeps its streams, online at the daemon that runs now."""
        system = self.system
        if self._box is None:
            self._box = system.devices(1, "box")[0]
        if self._agent is None or self._agent_of != system.daemon_pid:
            if self._agent is not None:
                self._agent.running.stop()
            self._agent = system.go_agent([self._box[1]], local=self.upstream)
            self._agent.wait_online()
            self._agent_of = system.daemon_pid
        return self._box[0], self._agent

    def ours(self) -> Side:
        """The fast lane; where it does not answer, the DRF lane."""
        device, agent = self.box()
        fast = self.system.fast(device, agent.pid)
        return fast if self.system.answers(fast) == 200 else self.system.drf(device, agent.pid)

    def reference(self) -> Side:
        """The Go reference with streams reused, one device, the same agent."""
        if self._reference is None:
            relay = Reference(self.var)
            self._stack.callback(relay.close)
            self._reference = relay, relay.agent(["box"], self.upstream)
        return self._reference[0].side("box", self._reference[1])

    def direct(self) -> Side:
        """No tunnel at all."""
        return Side("no tunnel", f"http://127.0.0.1:{self.upstream}")
