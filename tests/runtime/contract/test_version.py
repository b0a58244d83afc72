"""One version, told by every part."""

import subprocess
import sys
import tomllib
from pathlib import Path

import cloud.version
import tunnel
from tunnel.agent.version import VERSION

ROOT = Path(__file__).resolve().parents[3]


def test_agent_and_control_plane_have_the_projects_version() -> None:
    assert tunnel.__version__ == VERSION == cloud.version.VERSION


def test_the_wheels_version_is_read_from_there() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert about["project"]["dynamic"] == ["version"]
    assert about["tool"]["hatch"]["version"]["path"] == "tunnel/__init__.py"


def test_an_agent_from_a_checkout_tells_it() -> None:
    done = subprocess.run([sys.executable, "-m", "tunnel.agent", "version"], cwd=ROOT, capture_output=True, check=True)
    assert tunnel.__version__ in done.stdout.decode().split()
