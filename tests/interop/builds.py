"""The agents of the tests that are no Go: built once and kept below `var/`, so that a second run is quick."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.interop.go_build import ROOT, unable

BUILD_SECONDS = 400
"""A test that builds may take 1 000 s: another's build, or one of another program, can come before its own."""


def cargo_build(folder: Path) -> list[str]:
    """The command of the Rust program in `folder`, built by its lock. Skips or fails as `go_build.build` does."""
    cargo = _program("cargo", "Rust is not installed")
    target = ROOT / "var" / "rust"
    with _alone(target):
        environ = {"CARGO_TARGET_DIR": str(target), **_toolchains(Path(cargo))}
        _run([cargo, "build", "--quiet", "--locked"], folder, environ)
    return [str(target / "debug" / folder.name)]


def npm_install(folder: Path, program: str = "agent.js") -> list[str]:
    """The command of a Node program in `folder`, its packages installed by its lock. Skips or fails likewise."""
    node, npm = _program("node", "Node is not installed"), _program("npm", "npm is not installed")
    sources = sorted(p for p in folder.iterdir() if p.suffix in (".js", ".json"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    target = ROOT / "var" / "node" / f"{folder.name}-{digest}"
    with _alone(target.parent):
        if not (target / "installed").exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for source in sources:
                shutil.copy(source, target)
            _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], target, {})
            (target / "installed").touch()
    return [node, str(target / program)]


def _toolchains(cargo: Path) -> dict[str, str]:
    """Where rustup's shim finds its compilers. It looks in HOME, which may be another than that of who installed it."""
    beside = cargo.parent.parent.parent / ".rustup"
    own = Path.home() / ".rustup" / "toolchains"  # rustup makes an empty .rustup wherever it is asked anything
    if "RUSTUP_HOME" in os.environ or (own.is_dir() and any(own.iterdir())) or not beside.is_dir():
        return {}
    return {"RUSTUP_HOME": str(beside)}


def _program(name: str, missing: str) -> str:
    found = shutil.which(name)
    return found if found is not None else unable(missing)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Several test processes may want it at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path, environ: dict[str, str]) -> None:
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | environ, capture_output=True, text=True,
            timeout=BUILD_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        unable(f"{name} took more than {BUILD_SECONDS} s for {folder.name}")
    if done.returncode:
        unable(f"{name} failed for {folder.name}:\n{done.stderr[-2000:]}")
