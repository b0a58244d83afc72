"""Installs the npm packages of the tests once, and keeps them below `var/` by the hash of their lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "var" / "npm"
INSTALL_SECONDS = 150


def installed(folder: Path) -> Path:
    """A copy of `folder` with its locked packages. Skips the test where Node or npm is missing; fails then in CI."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        _unable("Node.js with npm is not installed")
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".mjs"))
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    place = CACHE / f"{folder.name}-{digest.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not place.exists():
            partial = place.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            _install(str(npm), partial)
            partial.replace(place)
    return place


def _install(npm: str, folder: Path) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        _unable(f"npm ci took more than {INSTALL_SECONDS} s")
    if done.returncode:
        _unable(f"npm ci failed:\n{done.stderr[-2000:]}")


def _unable(why: str) -> None:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(why)
    pytest.skip(why)
