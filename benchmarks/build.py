"""What is built for the benchmarks: the Go programs in ``benchmarks/bin``, and the tunnel's compiled core."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.processes import ROOT, BenchError
from tunnel.protocol import session

PEERS: Final = ROOT / "benchmarks" / "peers"
BIN: Final = ROOT / "benchmarks" / "bin"
PROGRAMS: Final = ("load", "upstream", "agent", "relay", "sockets")
BUILD_SECONDS: Final = 300
COMPILED: Final = ROOT / "build" / "compiled"


def build() -> None:
    """Build what is older than its sources. Raises BenchError without Go."""
    sources = [path for path in PEERS.rglob("*") if path.suffix in (".go", ".mod", ".sum")]
    newest = max(path.stat().st_mtime for path in sources)
    if all((BIN / name).exists() and (BIN / name).stat().st_mtime > newest for name in PROGRAMS):
        return
    if (go := shutil.which("go")) is None:
        raise BenchError("Go is not on the PATH, and agent, upstream and reference are Go programs")
    BIN.mkdir(exist_ok=True)
    command = [go, "build", "-trimpath", "-o", f"{BIN}/", "./..."]
    environ = os.environ | {"CGO_ENABLED": "0"}
    done = subprocess.run(
        command, cwd=PEERS, env=environ, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    if done.returncode:
        raise BenchError(f"go build failed:\n{done.stderr[-2000:]}")


def program(name: str) -> Path:
    """Where the built program `name` is."""
    return BIN / name


def core_is_compiled() -> bool:
    """Whether this process, and so those that it starts, has the compiled copy of the tunnel's core."""
    return not session.__file__.endswith(".py")


def environ_of_compiled() -> dict[str, str] | None:
    """The environment in which Python finds the compiled copy first, made if need be; None where it cannot be made."""
    command = [sys.executable, "deploy/compile.py", str(COMPILED)]
    if subprocess.run(command, cwd=ROOT, timeout=2 * BUILD_SECONDS, check=False).returncode:
        return None
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{COMPILED}{os.pathsep}{ROOT}"}
