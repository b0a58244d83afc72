"""The agent's systemd unit."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "visiona-agent.service"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keeps the case, as documented
    parser.read(UNIT)
    return parser


def test_it_is_started_again_whatever_ended_it() -> None:
    """A box has no keyboard: what is wrong today (a refusal, a damaged file) may be mended tomorrow from afar."""
    assert unit()["Service"]["Restart"] == "always"
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"  # never given up
    assert "RestartPreventExitStatus" not in unit()["Service"]
    assert "--exit-on-refusal" not in unit()["Service"]["ExecStart"]


def test_it_keeps_its_credential_in_its_own_state_folder() -> None:
    service = unit()["Service"]
    assert service["DynamicUser"] == "yes"
    assert (service["StateDirectory"], service["StateDirectoryMode"]) == ("visiona-agent", "0700")
    assert service["ProtectSystem"] == "strict"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_itself_accepts_it(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/visiona-agent/bin/visiona-agent", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
