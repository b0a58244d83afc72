"""The wheel installs alone: an empty environment without Django, and the program runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tunnel import __version__

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
NEEDS = (
    "trio", "trio_websocket", "websockets", "httptools", "orjson", "dotenv", "click", "rich", "attr", "attrs",
    "python_dotenv", "sortedcontainers", "idna", "outcome", "sniffio", "wsproto", "h11", "pygments", "markdown_it",
    "mdurl",
)  # fmt: skip
"""The packages that pyproject's dependencies amount to; Django is not among them."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network: its backend is installed here."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "tunnel", source / "tunnel", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((source / "dist").glob("*.whl"))


def test_the_wheel_holds_the_agent_and_the_daemon_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tunnel"}


def test_it_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    installed = Path(sysconfig.get_paths()["purelib"])
    for entry in installed.iterdir():
        if entry.name.split(".")[0].split("-")[0].lower() in NEEDS:
            (packages / entry.name).symlink_to(entry)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(packages)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=120)
    # -S: no site-packages but these; -I would drop PYTHONPATH
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(packages)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-S", "-m", "tunnel.agent", *words],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("version").split()[:2] == ["visiona-agent", __version__]
    assert wheel.name.startswith(f"visiona_agent-{__version__}-")
    assert "simulated box" in run("demo", "--help")
    probe = (
        "import importlib.util as u; print([n for n in ('django', 'psycopg', 'prometheus_client') if u.find_spec(n)])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", probe], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "the environment was not empty"


def test_the_console_script(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "visiona-agent = tunnel.agent.__main__:main" in archive.read(entry).decode()
