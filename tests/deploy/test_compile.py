"""The compiled core (deploy/compile.py): the same tests, on the copy that mypyc makes of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "compiled-check"
BUILD_SECONDS, TEST_SECONDS = 600, 600  # by far, on a busy machine
# What a test process would otherwise put before the copy: the folder of the source tree.
COPY_ONLY = ("-o", "pythonpath=", "-o", "django_find_project=false", "-p", "no:cacheprovider", "-p", "no:randomly")

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cc") is None, reason="no C compiler")


def compiled(*words: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "deploy/compile.py", *words],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False,
    )  # fmt: skip


def on_the_copy(*words: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT, env=environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{COPY}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, timeout=TEST_SECONDS, check=False,
    )  # fmt: skip


@pytest.mark.nightly
@needs_compiler
@pytest.mark.timeout(BUILD_SECONDS + 2 * TEST_SECONDS)
def test_the_compiled_core_passes_the_tests_of_the_source() -> None:
    made = compiled(str(COPY), "--level", "0")
    assert made.returncode == 0, made.stdout + made.stderr
    where = "import tunnel.protocol.session as a, tunnel.http.request as b; print(a.__file__, b.__file__)"
    used = on_the_copy("-c", where).stdout.split()
    assert len(used) == 2
    assert all(path.startswith(str(COPY)) and path.endswith(".so") for path in used), used
    # The 64 cases and the exchange; `make test-compiled` runs all.
    tests = ("-m", "pytest", "-q", *COPY_ONLY, "-k", "not fuzz", "tests/protocol/test_cases.py", "tests/http")
    done = on_the_copy(*tests)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    again = compiled(str(COPY), "--level", "0")
    assert "as it was" in again.stdout


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    done = compiled(str(tmp_path / "copy"), env={**os.environ, "CC": "no-such-compiler"})
    assert done.returncode == 3
    assert "NOT COMPILED" in done.stderr
    assert not (tmp_path / "copy").exists()


def test_nothing_compiled_lies_beside_the_source() -> None:
    # It would go on hiding the source file after a change.
    assert not [path for path in (ROOT / "tunnel").rglob("*") if path.suffix in (".so", ".pyd")]
