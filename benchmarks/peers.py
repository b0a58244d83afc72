"""The others, on the same upstream: the Go reference always, chisel and frp where their binaries are on the PATH."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.build import program
from benchmarks.processes import BenchError, Running, free_port, listens
from benchmarks.sides import Ask, Side, measure
from benchmarks.system import Agent


class Reference:
    """The Go reference relay with agents of its own."""

    def __init__(self, var: Path, *, reuse: bool = True) -> None:
        self._var, self._stack, self._agents = var, ExitStack(), 0
        self.port = free_port()
        words = [str(program("relay")), "-listen", f"127.0.0.1:{self.port}", f"-reuse={str(reuse).lower()}"]
        self.running = Running(words, var / "log" / f"relay-{self.port}.log")
        self._stack.callback(self.running.stop)
        self.running.wait_until(lambda: listens(self.port), 10, "the Go reference listens")

    def agent(self, names: list[str], local: int) -> Agent:
        """The same Go agent as on our side, a tunnel a name."""
        self._agents += 1
        file = self._var / f"relay-{self.port}-{self._agents}.tokens"
        file.write_text("\n".join(names))
        url = f"ws://127.0.0.1:{self.port}/tunnel/connect"
        words = [str(program("agent")), "-url", url, "-tokens", str(file), "-local", f"127.0.0.1:{local}"]
        words += ["-buffer", "4096"] if len(names) > 1 else []
        running = Running(words, self._var / "log" / f"relay-{self.port}-{self._agents}.log")
        self._stack.callback(running.stop)
        agent = Agent(running, len(names))
        agent.wait_online()
        return agent

    def side(self, device: str, agent: Agent, name: str = "Go reference") -> Side:
        """The way through it."""
        return Side(name, f"http://127.0.0.1:{self.port}/d/{device}", (), (self.running.pid,), (agent.pid,))

    def close(self) -> None:
        """End it and its agents."""
        self._stack.close()


def _pair(stack: ExitStack, var: Path, name: str, server: list[str], client: list[str], port: int) -> tuple[int, int]:
    pids = []
    for role, words in (("server", server), ("client", client)):
        running = Running(words, var / "log" / f"{name}-{role}.log")
        stack.callback(running.stop)
        pids.append(running.pid)
        if role == "server":
            running.wait_until(lambda: listens(port), 10, f"{name} listens")
    return pids[0], pids[1]


def _settled(side: Side) -> Side | None:
    """The side once it answers; a client needs a moment to register."""
    for _ in range(20):
        try:
            measure(side, Ask(), 0.25)
        except BenchError:
            continue
        return side
    return None


def _chisel(stack: ExitStack, var: Path, upstream: int, binary: str) -> list[Side]:
    port, out = free_port(), free_port()
    server = [binary, "server", "--host", "127.0.0.1", "--port", str(port), "--reverse"]
    client = [binary, "client", f"http://127.0.0.1:{port}", f"R:127.0.0.1:{out}:127.0.0.1:{upstream}"]
    relay, agent = _pair(stack, var, "chisel", server, client, port)
    return [Side("chisel (raw)", f"http://127.0.0.1:{out}", (), (relay,), (agent,))]


def _frp(stack: ExitStack, var: Path, upstream: int, binary: str) -> list[Side]:
    port, web, raw = free_port(), free_port(), free_port()
    (var / "frps.toml").write_text(
        f'bindAddr = "127.0.0.1"\nproxyBindAddr = "127.0.0.1"\nbindPort = {port}\nvhostHTTPPort = {web}\n'
    )
    proxies = (
        f'[[proxies]]\nname = "web"\ntype = "http"\nlocalPort = {upstream}\ncustomDomains = ["127.0.0.1"]\n'
        f'[[proxies]]\nname = "raw"\ntype = "tcp"\nlocalPort = {upstream}\nremotePort = {raw}\n'
    )
    (var / "frpc.toml").write_text(f'serverAddr = "127.0.0.1"\nserverPort = {port}\n{proxies}')
    client = [str(shutil.which("frpc")), "-c", str(var / "frpc.toml")]
    relay, agent = _pair(stack, var, "frp", [binary, "-c", str(var / "frps.toml")], client, port)
    return [
        Side("frp http", f"http://127.0.0.1:{web}", (), (relay,), (agent,)),
        Side("frp tcp (raw)", f"http://127.0.0.1:{raw}", (), (relay,), (agent,)),
    ]


@contextmanager
def others(var: Path, upstream: int) -> Iterator[tuple[list[Side], list[str]]]:
    """The sides of those that are installed, and a line for each that is not, or that did not come up."""
    sides, missing = [], []
    with ExitStack() as stack:
        for name, binary, start in (("chisel", "chisel", _chisel), ("frp", "frps", _frp)):
            path = shutil.which(binary)
            if path is None or (name == "frp" and shutil.which("frpc") is None):
                missing.append(f"{name} is not on the PATH, and was left out.")
                continue
            try:
                started = start(stack, var, upstream, os.fspath(path))
            except BenchError as error:
                missing.append(f"{name} did not start, and was left out: {error}")
                continue
            for side in started:
                if _settled(side):
                    sides.append(side)
                else:
                    missing.append(f"{side.name} did not answer, and was left out.")
        yield sides, missing
