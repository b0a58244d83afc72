"""The schema against the live server: schemathesis tries to break what OpenAPI promises, all checks, stateful.

Three passes, since some routes end what the others stand on: the control plane on both storages; what goes to a box,
with the demo box online; and what ends the login, the account or the box.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from tests.apps.converter.kit import SECRET
from tests.apps.stores import Moto, moto
from tests.conftest import StartProcess
from tests.system.stack import Stack, run_stack

__all__ = ["moto"]
pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]

EXAMPLES = os.environ.get("CONTRACT_EXAMPLES", "1")
"""Of each operation and phase: few in the suite, which has other things to do; `make contract` tries many."""
CONFIG = Path(__file__).with_name("schemathesis.toml")
REFERENCE = Path(__file__).resolve().parents[1] / "apps" / "converter" / "reference.py"
BOX = r"/(proxy/|ws/\{|cameras|inference|scan)"
STORED = r"/(models|deployments|conversions)"
ENDS = r"^/api/auth/(logout|logout-all|password$|me|sessions/\{id\})"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    """The whole system on the local storage; one for all its tests, in whichever order they come."""
    with running(tmp_path_factory.mktemp("contract") / "var", free_port, {}) as stack:
        yield stack


@pytest.fixture
def cloud_on_s3(tmp_path: Path, free_port: Callable[[], int], moto: Moto) -> Iterator[Stack]:
    """The same on S3."""
    settings = {f"VISIONA_{name}": value for name, value in moto.settings("contract").items()}
    with running(tmp_path / "var", free_port, settings) as stack:
        yield stack


@contextmanager
def running(folder: Path, free_port: Callable[[], int], storage: dict[str, str]) -> Iterator[Stack]:
    """The whole system but the box, with a converter's address."""
    settings = {"VISIONA_CONVERTER_URL": f"http://127.0.0.1:{free_port()}/", "VISIONA_CONVERTER_SECRET": SECRET}
    with run_stack(folder, (free_port(), free_port(), free_port()), settings | storage) as stack:
        for part in (plans.tunnel, plans.api, plans.worker):
            stack.start(part(stack.plan))
        stack.log_in()
        yield stack


def converter(cloud: Stack, start_process: StartProcess) -> None:
    """The reference converter at the address that the system knows."""
    port = cloud.environ["VISIONA_CONVERTER_URL"].rsplit(":", 1)[1].rstrip("/")
    start_process(["python", str(REFERENCE), "--port", port, "--secret", SECRET], ready="listening")


def test_the_control_plane(cloud: Stack, tmp_path: Path, start_process: StartProcess) -> None:
    converter(cloud, start_process)
    token = cloud.register("contract@example.com")
    assert broken(cloud, tmp_path, token, "--exclude-path-regex", f"{BOX}|{ENDS}") > 40


@pytest.mark.nightly
def test_what_is_stored_on_s3(cloud_on_s3: Stack, tmp_path: Path, start_process: StartProcess) -> None:
    """The rest does not know where bytes lie."""
    converter(cloud_on_s3, start_process)
    token = cloud_on_s3.register("contract@example.com")
    assert broken(cloud_on_s3, tmp_path, token, "--include-path-regex", STORED) > 10


def test_what_goes_to_a_box(cloud: Stack, tmp_path: Path) -> None:
    if "agent" not in cloud.processes:
        cloud.start_agent()
    cloud.device_id()
    assert broken(cloud, tmp_path, cloud.token, "--include-path-regex", BOX) > 20


def test_what_ends_a_login(cloud: Stack, tmp_path: Path) -> None:
    token = cloud.register("leaves@example.com")
    assert broken(cloud, tmp_path, token, "--include-path-regex", ENDS) >= 5


def broken(cloud: Stack, folder: Path, token: str, *choice: str) -> int:
    """How many operations were tried. Fails with schemathesis' own report where one breaks its promise.

    All share what Hypothesis finds out about Unicode, which takes it seconds.
    """
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIG), "run",
            f"http://127.0.0.1:{cloud.port}/api/schema/", "--header", f"Authorization: Bearer {token}",
            "--max-examples", EXAMPLES, "--seed", "1", "--generation-deterministic",
            "--continue-on-failure", "--request-timeout", "30", "--no-color", *choice,
        ],
        cwd=folder, env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(folder.parent / "hypothesis")},
        capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    told = "\n".join(line[:400] for line in done.stdout.splitlines())  # a URL that is too long is shown whole
    sys.stdout.write(told)
    assert done.returncode == 0, told[-12000:] + done.stderr[-2000:]
    tested = re.search(r"Tested:\s+(\d+)", done.stdout)
    assert tested is not None, told[-3000:]
    return int(tested[1])
