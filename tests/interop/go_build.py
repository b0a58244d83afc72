"""Builds the Go programs of the tests once, and keeps them below `var/` by the hash of their sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "var" / "go"
BUILD_SECONDS = 400
PLAIN = ("-gcflags=github.com/...=-N -l", "-ldflags=-s -w")
"""Without optimizing other people's packages: half the processor time for large programs that need not be fast."""


def build(folder: Path, seconds: float = BUILD_SECONDS, flags: Sequence[str] = ()) -> Path:
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
            _compile(str(go), folder, program, seconds, flags)
    return program


def _compile(go: str, folder: Path, program: Path, seconds: float, flags: Sequence[str]) -> None:
    partial = program.with_suffix(".partial")
    command = [go, "build", "-trimpath", *flags, "-o", str(partial), "."]
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
