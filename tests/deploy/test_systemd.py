"""The agent's systemd unit."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from tunnel.agent.verdict import EXIT_FORBIDDEN, EXIT_UNAUTHENTICATED, EXIT_USAGE

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "visiona-agent.service"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keeps the case, as documented
    parser.read(UNIT)
    return parser


def test_a_refused_agent_is_not_started_again() -> None:
    statuses = {int(status) for status in unit()["Service"]["RestartPreventExitStatus"].split()}
    assert statuses == {EXIT_USAGE, EXIT_UNAUTHENTICATED, EXIT_FORBIDDEN}
    assert unit()["Service"]["Restart"] == "always"
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"  # never given up


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
