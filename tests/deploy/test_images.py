"""The Dockerfiles, read as text: what every image has to be."""

import re
from pathlib import Path

import pytest

from tunnel.contract import BY_NAME

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))


@pytest.fixture(params=FILES, ids=lambda path: path.suffix[1:])
def text(request: pytest.FixtureRequest) -> str:
    path: Path = request.param
    return path.read_text()


def test_there_is_one_for_each_program() -> None:
    assert [path.suffix for path in FILES] == [".agent", ".api", ".tunnel"]


def test_built_in_one_stage_and_run_from_another(text: str) -> None:
    stages = re.findall(r"^FROM (.+)$", text, re.MULTILINE)
    assert stages == ["${BASE} AS build", "${BASE}"]
    assert "--require-hashes" in text.split("FROM ${BASE}\n", maxsplit=1)[0]


def test_no_image_runs_as_root(text: str) -> None:
    final = text.split("FROM ${BASE}\n")[1]
    users = re.findall(r"^USER (.+)$", final, re.MULTILINE)
    assert users == ["10001:10001"]
    assert final.index("USER ") < final.index("\nCMD ")
    assert final.rindex("RUN ") < final.index("USER ")


def test_health_is_checked_and_signals_arrive(text: str) -> None:
    assert "HEALTHCHECK" in text
    assert "STOPSIGNAL SIGTERM" in text
    # In the exec form alone the program is process 1 and gets the signal itself.
    assert re.search(r'^CMD \["', text, re.MULTILINE)


def test_what_is_copied_exists(text: str) -> None:
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert (ROOT / source).exists(), source


def test_the_build_context_holds_no_secrets() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[ignored.index("*") - 1].startswith("#")
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert let_in == {
        "apps", "cloud", "deploy/compile.py", "tunnel", "requirements", "manage.py", "pyproject.toml", "README.md",
    }  # fmt: skip


def test_settings_in_images_exist(text: str) -> None:
    assert set(re.findall(r"\bVISIONA_(\w+)=", text)) <= set(BY_NAME)
