"""The installation on a bare machine: what is decided, and that the locks fit together."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.supervisor import install
from tests.conftest import ROOT

LOCKS = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}
NEXT = LOCKS.pop("next")


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", text, re.MULTILINE))


def test_the_locks_agree_on_every_version() -> None:
    """One environment holds any of them, so a package has one version in all."""
    assert set(LOCKS) == {"compile", "tunnel", "api", "local", "dev"}
    for smaller, larger in (("tunnel", "api"), ("api", "local"), ("local", "dev"), ("compile", "dev")):
        assert pins(LOCKS[smaller]).items() <= pins(LOCKS[larger]).items(), (smaller, larger)


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_a_package_has_one_version_for_every_python(name: str) -> None:
    """What is tested on one Python is what runs on the others."""
    names = re.findall(r"^([a-z0-9][a-z0-9._-]*)==", LOCKS[name], re.MULTILINE)
    assert sorted(names) == sorted(set(names))


def test_the_next_django_is_tried_with_all_else_as_it_is() -> None:
    differ = {name for name, version in pins(NEXT).items() if pins(LOCKS["dev"]).get(name) != version}
    assert differ == {"django"}


def test_one_range_of_pythons() -> None:
    finder = (ROOT / ".ci" / "python").read_text()
    ((low, high),) = re.findall(r"^OLDEST=(\d+) NEWEST=(\d+)", finder, re.MULTILINE)
    assert [(3, int(low)), (3, int(high))] == [install.OLDEST, install.NEWEST]


@pytest.fixture
def pythons(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run .ci/python where these names stand for Pythons of these minor versions."""

    def run(**named: int) -> "subprocess.CompletedProcess[str]":
        for name, minor in named.items():
            program = tmp_path / name.replace("_", ".")
            # The version of this Python, and told to be another one.
            program.write_text(
                f'#!/bin/sh\nexec {sys.executable} -S -c "import sys; sys.version_info = '
                f'type(\'V\', (tuple,), {{}})((3, {minor}, 0)); exec(sys.argv[1])" "$2"\n'
            )
            program.chmod(0o755)
        environ = {"PATH": f"{tmp_path}:/nowhere"}
        command = ["/bin/sh", str(ROOT / ".ci" / "python")]
        return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_the_newest_supported_python_is_taken(pythons: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    assert pythons(python3=15, python3_11=11, python3_13=13).stdout == "python3.13\n"


def test_a_python_that_is_too_new_is_told_in_one_line(
    pythons: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = pythons(python3=15)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("visiona: Python 3.11 to 3.14 is needed, and python3 here is 3.15: install one")
    assert len(done.stderr.splitlines()) == 1


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
    monkeypatch.setattr(install, "UNFINISHED", tmp_path / "installing")
    monkeypatch.setattr(install, "LOG", tmp_path / "install.log")
    install.STAMP.write_text(json.dumps({"dev": install.lock_hash("dev")}))

    def refuse(name: str) -> None:
        raise AssertionError(f"installs {name}")

    monkeypatch.setattr(install, "_install", refuse)
    return tmp_path


@pytest.mark.parametrize("name", ["dev", "local"])
def test_what_is_there_is_not_installed_again(stamped: Path, name: str) -> None:
    install.ensure(name)  # `local` is in `dev`


def test_a_changed_lock_is_installed(stamped: Path) -> None:
    install.STAMP.write_text(json.dumps({"dev": f"another-hash {install.VERSION}"}))
    with pytest.raises(AssertionError, match="installs dev"):
        install.ensure("dev")


@pytest.mark.parametrize("broken", ["half installed", "another Python's"])
def test_an_environment_that_may_lack_files_is_made_anew(
    stamped: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Broken off between two packages it looks whole to an installer, and no second start would mend it."""
    if broken == "half installed":
        install.UNFINISHED.touch()
    else:
        install.STAMP.write_text(json.dumps({"dev": install.lock_hash("dev").rpartition(" ")[0] + " 3.99"}))
    done: list[str] = []
    monkeypatch.setattr(install, "_make_environment", lambda: done.append("made"))
    monkeypatch.setattr(install, "_install", done.append)
    install.ensure("dev")
    assert done == ["made", "dev"]
    assert not install.UNFINISHED.exists()
    install.ensure("dev")
    assert done == ["made", "dev"]


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
