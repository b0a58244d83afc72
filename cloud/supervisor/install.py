"""Make the virtual environment and put the locked requirements there, when they are not there yet.

Usage: ``python3 -m cloud.supervisor.install local|dev``, on the machine's own Python: standard library only. The hash
of each lock that was installed is remembered in the environment, so that the next start costs nothing. The packages
are put there by ``uv``, itself locked, which needs a few seconds where pip needs a minute; pip does it where uv cannot.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STAMP = VENV / "installed.json"
# What holds another lock's packages too: the locks agree on every version (a test sees to it).
INCLUDED = {"local": ("dev",), "dev": ()}


def say(line: str) -> None:
    """One line to the user, at once."""
    print(f"visiona: {line}", flush=True)  # noqa: T201 - this is a command line program


def lock_hash(name: str) -> str:
    """The hash of a lock file, with the Python that its packages are for."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return hashlib.sha256((ROOT / "requirements" / f"{name}.txt").read_bytes()).hexdigest() + f" {version}"


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
    command = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    subprocess.run([*command, *arguments], check=True, cwd=ROOT)


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
        _pip("install", "--require-hashes", "--no-deps", "--no-compile", "-r", file.name)
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(VENV / "bin" / "python")]
    uv += ["--require-hashes", "--no-deps", "-r", str(lock)]
    if subprocess.run(uv, check=False, cwd=ROOT, env={**os.environ, **_index()}).returncode:
        say("uv could not install the packages, now with pip (this takes longer)")
        _pip("install", "--require-hashes", "--no-deps", "--no-compile", "-r", lock)


def ensure(name: str) -> None:
    """Have the lock ``requirements/<name>.txt`` installed. Raises CalledProcessError, OSError, ValueError."""
    (ROOT / "var").mkdir(exist_ok=True)
    with (ROOT / "var" / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make dev` and `make test` side by side: one installs, the other finds it
        there = installed()
        if any(there.get(each) == lock_hash(each) for each in (name, *INCLUDED[name])):
            return
        begun = time.monotonic()
        if not there and not (VENV / "bin" / "pip").exists():
            say("making the virtual environment .venv")
            subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True, cwd=ROOT)
        say(f"installing requirements/{name}.txt")
        _install(name)
        STAMP.write_text(json.dumps({**there, name: lock_hash(name)}))
        say(f"installed in {time.monotonic() - begun:.0f} s")


def main() -> int:
    """The command line. 1 with one line when it cannot be done."""
    if sys.version_info < (3, 11):  # noqa: UP036 - told by whoever runs it with an older one
        say(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")
        return 1
    try:
        ensure(sys.argv[1])
    except subprocess.CalledProcessError as error:
        say(f"the installation failed: {' '.join(map(str, error.cmd[:6]))} … ended with status {error.returncode}")
        return 1
    except (OSError, ValueError) as error:
        say(f"the installation failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
