"""Make a virtual environment and put the locked requirements there, when they are not there yet.

Usage: ``[VENV=folder] python3 -m cloud.supervisor.install LOCK`` with the name of a lock in requirements/, on the
machine's own Python: standard library only. The hash of each lock that was installed is remembered in the environment
(.venv), so that the next start costs nothing. The packages are put there by ``uv``, itself locked, which needs a few
seconds where pip needs a minute; pip does it where uv cannot.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / os.environ.get("VENV", ".venv")
STAMP = VENV / "installed.json"
UNFINISHED = VENV / "installing"
"""There while packages are put in: an environment that was broken off on the way may look whole and is made anew."""
LOG = ROOT / "var" / "install.log"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
OLDEST, NEWEST = (3, 11), (3, 14)
"""The Pythons that are tried; what is newer lacks wheels (of the embedded PostgreSQL first)."""
# What holds another lock's packages too: the locks agree on every version (a test sees to it).
INCLUDED = {"local": ("dev",), "dev": (), "next": ()}


def say(line: str) -> None:
    """One line to the user, at once."""
    print(f"visiona: {line}", flush=True)  # noqa: T201 - this is a command line program


def lock_hash(name: str) -> str:
    """The hash of a lock file, with the Python that its packages are for."""
    return f"{hashlib.sha256((ROOT / 'requirements' / f'{name}.txt').read_bytes()).hexdigest()} {VERSION}"


def installed() -> dict[str, str]:
    """Which locks are in the environment; none when its Python is gone or is another one."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
        subprocess.run([VENV / "bin" / "python", "-c", ""], check=True, capture_output=True)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return {}
    return stamp


def package_block(lock: str, package: str) -> str:
    """The lines of one package, hashes included, out of a lock file's text. Raises ValueError when it is not there."""
    lines = lock.splitlines()
    for start, line in enumerate(lines):
        if line.startswith(f"{package}=="):
            end = start + 1
            while lines[end - 1].endswith("\\"):
                end += 1
            return "\n".join(lines[start:end]) + "\n"
    raise ValueError(f"{package} is not locked")


def _pip(*arguments: str | Path) -> None:
    """Wheels alone: what a user meets is never a compiler's output. Raises CalledProcessError."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    _logged(
        [*command, "install", "--require-hashes", "--no-deps", "--no-compile", "--only-binary", ":all:", *arguments]
    )


def _logged(command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> None:
    """Run it with its words kept in ``LOG``. Raises CalledProcessError."""
    with LOG.open("ab") as log:
        subprocess.run(command, check=True, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT)


def _index() -> dict[str, str]:
    """The package index that pip is set to, for uv (which does not read pip's settings), and the system's CAs."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    url = os.environ.get("PIP_INDEX_URL") or (found.stdout.strip() if found.returncode == 0 else "")
    return {"UV_SYSTEM_CERTS": "true", **({"UV_DEFAULT_INDEX": url} if url else {})}


def _install(name: str) -> None:
    lock = ROOT / "requirements" / f"{name}.txt"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(package_block(lock.read_text(), "uv"))
        file.flush()
        _pip("-r", file.name)
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(VENV / "bin" / "python")]
    try:
        _logged([*uv, "--no-build", "--require-hashes", "--no-deps", "-r", lock], {**os.environ, **_index()})
    except subprocess.CalledProcessError:
        say("uv could not install the packages, now with pip (this takes longer)")
        _pip("-r", lock)


def _make_environment() -> None:
    say(f"making the virtual environment .venv with Python {sys.version.split()[0]}")
    # Not .venv's own Python, if it is that one which runs: the folder is emptied.
    base = getattr(sys, "_base_executable", None) or sys.executable
    _logged([base, "-m", "venv", "--clear", VENV])


def ensure(name: str) -> None:
    """Have the lock ``requirements/<name>.txt`` installed for the Python that runs this.

    Raises CalledProcessError, OSError, ValueError.
    """
    (ROOT / "var").mkdir(exist_ok=True)
    with (ROOT / "var" / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make dev` and `make test` side by side: one installs, the other finds it
        there = {} if UNFINISHED.exists() else installed()
        if any(there.get(each) == lock_hash(each) for each in (name, *INCLUDED[name])):
            return
        begun = time.monotonic()
        LOG.unlink(missing_ok=True)
        if not there or not all(stamp.endswith(f" {VERSION}") for stamp in there.values()):
            _make_environment()
            there = {}
        UNFINISHED.touch()
        say(f"installing requirements/{name}.txt")
        _install(name)
        STAMP.write_text(json.dumps({**there, name: lock_hash(name)}))
        UNFINISHED.unlink()
        say(f"installed in {time.monotonic() - begun:.0f} s")


def _last_line(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1] if lines else "it wrote nothing"


def main() -> int:
    """The command line. 1 with one line when it cannot be done."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        supported = " to ".join(".".join(map(str, each)) for each in (OLDEST, NEWEST))
        say(f"Python {supported} is needed; this is {sys.version.split()[0]}")
        return 1
    try:
        ensure(sys.argv[1])
    except subprocess.CalledProcessError as error:
        program = Path(error.cmd[0]).name
        say(f"the installation failed: {program} says: {_last_line(LOG)} (more in {LOG.relative_to(ROOT)})")
        return 1
    except (OSError, ValueError) as error:
        say(f"the installation failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
