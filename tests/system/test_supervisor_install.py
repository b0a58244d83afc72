"""The installation on a bare machine: what is decided, and that the locks fit together."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloud.supervisor import install
from tests.conftest import ROOT

LOCKS = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", text, re.MULTILINE))


def test_the_locks_agree_on_every_version() -> None:
    """One environment holds any of them, so a package has one version in all."""
    assert set(LOCKS) == {"compile", "tunnel", "api", "local", "dev"}
    for smaller, larger in (("tunnel", "api"), ("api", "local"), ("local", "dev"), ("compile", "dev")):
        assert pins(LOCKS[smaller]).items() <= pins(LOCKS[larger]).items(), (smaller, larger)


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_every_package_is_locked_by_hash(name: str) -> None:
    text = LOCKS[name]
    assert pins(text)
    for block in re.split(r"\n(?=[a-z0-9])", text):
        if re.match(r"[a-z0-9]", block):
            assert "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.parametrize("name", ["local", "dev"])
def test_the_installer_itself_is_locked(name: str) -> None:
    block = install.package_block(LOCKS[name], "uv")
    assert re.match(r"uv==\d", block)
    assert block.count("--hash=sha256:") >= 2
    assert len(pins(block)) == 1


def test_a_package_that_is_not_locked_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is not locked"):
        install.package_block(LOCKS["dev"], "nothing")


def test_an_unlocked_tool_is_not_taken_for_another() -> None:
    assert install.package_block("uvloop==1 \\\n    --hash=a\nuv==2 \\\n    --hash=b\n    # via x\n", "uv") == (
        "uv==2 \\\n    --hash=b\n"
    )


@pytest.fixture
def stamped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment in which everything of `dev` is said to be, and nobody may install anything."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "STAMP", tmp_path / "installed.json")
    install.STAMP.write_text(json.dumps({"dev": install.lock_hash("dev")}))

    def refuse(name: str) -> None:
        raise AssertionError(f"installs {name}")

    monkeypatch.setattr(install, "_install", refuse)
    return tmp_path


@pytest.mark.parametrize("name", ["dev", "local"])
def test_what_is_there_is_not_installed_again(stamped: Path, name: str) -> None:
    install.ensure(name)  # `local` is in `dev`


def test_a_changed_lock_is_installed(stamped: Path) -> None:
    install.STAMP.write_text(json.dumps({"dev": "another hash"}))
    (stamped / "bin" / "pip").touch()
    with pytest.raises(AssertionError, match="installs dev"):
        install.ensure("dev")


def test_an_environment_whose_python_is_gone_counts_for_nothing(stamped: Path) -> None:
    (stamped / "bin" / "python").unlink()
    (stamped / "bin" / "python").symlink_to("/nowhere/python3")
    assert install.installed() == {}


def test_it_runs_on_a_bare_python() -> None:
    """On the machine's own Python there is nothing but the standard library."""
    code = "import cloud.supervisor.install as i; print(i.lock_hash('local'))"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == install.lock_hash("local")


def test_an_installation_that_fails_is_told_in_one_line(stamped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "STAMP", stamped / "none.json")
    monkeypatch.setattr(sys, "argv", ["install", "no-such-lock"])
    monkeypatch.setitem(install.INCLUDED, "no-such-lock", ())
    said: list[str] = []
    monkeypatch.setattr(install, "say", said.append)
    assert install.main() == 1
    assert said == [
        f"the installation failed: [Errno 2] No such file or directory: '{ROOT}/requirements/no-such-lock.txt'"
    ]
