"""Builds the Go programs of the tests once, and keeps them below `var/` by the hash of their sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "var" / "go"
BUILD_SECONDS = 150
INSTALL_SECONDS = 400
"""A minute on two idle cores; with what it downloads, and others at work, five."""


def build(folder: Path, seconds: float = BUILD_SECONDS) -> Path:
    """The program in `folder`, built in time. Skips the test where Go is missing; fails then in CI (`CI=true`)."""
    go = shutil.which("go")
    if go is None:
        unable("Go is not installed")
    sources = sorted(p for p in folder.iterdir() if p.suffix in (".go", ".mod", ".sum"))
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    program = CACHE / f"{folder.name}-{digest.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not program.exists():
            _compile(str(go), folder, program, seconds)
    return program


def install(package: str, version: str) -> Path:
    """A published program, built once as a Go module. Skips the test where that cannot be; fails then in CI."""
    go = shutil.which("go")
    if go is None:
        unable("Go is not installed")
    name = package.rpartition("/")[2]
    folder = CACHE / f"{name}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not (folder / name).exists():
            try:
                environ = os.environ | {"CGO_ENABLED": "0", "GOBIN": str(folder)}
                command = [go, "install", f"{package}@{version}"]
                done = subprocess.run(
                    command, env=environ, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                unable(f"go install {package} took more than {INSTALL_SECONDS} s")
            if done.returncode:
                unable(f"go install {package} failed:\n{done.stderr[-2000:]}")
    return folder / name


def _compile(go: str, folder: Path, program: Path, seconds: float) -> None:
    partial = program.with_suffix(".partial")
    command = [go, "build", "-trimpath", "-o", str(partial), "."]
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"CGO_ENABLED": "0"}, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        unable(f"go build took more than {seconds} s")
    if done.returncode:
        unable(f"go build failed:\n{done.stderr[-2000:]}")
    partial.replace(program)


def unable(why: str) -> NoReturn:
    """Skip the test; in CI (`CI=true`) fail it."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(why)
    pytest.skip(why)
