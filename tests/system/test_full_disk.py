"""A temporary folder that is full: what the API counts goes there, and no answer may depend on it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOUNT = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'
COUNTING = """
import json, os, sys
from apps.common.observability import metrics
folder, early = os.environ["PROMETHEUS_MULTIPROC_DIR"], sys.argv[1] == "early"
def fill():
    with open(os.path.join(folder, "..", "fill"), "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
if early:
    fill()
getattr(metrics, "allocate", int)()
metrics.observe("GET", "a", 200, 0.1)
if not early:
    fill()
for route in range(4000):
    metrics.observe("GET", f"route-{route}", 200, 0.1)
told = metrics.exposition().decode()
print(json.dumps({"first": 'route="a",status="200"} 1.0' in told, "series": told.count("visiona_api_requests_total{")}))
"""


def count_on(size: str, when: str, folder: Path) -> tuple[int, dict[str, Any], str]:
    """The status of a process that counts on a file system of that size, what it tells, and its log."""
    place = folder / "small"
    place.mkdir()
    inside = ["sh", "-c", 'mkdir "$0" && exec "$@"', str(place / "metrics"), sys.executable, "-c", COUNTING, when]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", size, str(place), *inside]
    environ = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PROMETHEUS_MULTIPROC_DIR": str(place / "metrics")}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no namespace here: {done.stderr.strip()}")
    told = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    return done.returncode, told, done.stdout + done.stderr


pytestmark = [
    pytest.mark.gameday,
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("unshare") is None, reason="mounts a small file system in a namespace of its own"),
]


@pytest.mark.parametrize("size", ["1m", "700k"])
def test_a_disk_that_fills_up_costs_new_series_and_no_process(tmp_path: Path, size: str) -> None:
    status, told, log = count_on(size, "late", tmp_path)
    assert status not in (-signal.SIGBUS, 128 + signal.SIGBUS), "killed by SIGBUS"
    assert status == 0, log
    assert told["first"]
    assert 100 < told["series"] < 4000


def test_a_disk_that_is_full_at_the_start_is_told_in_one_line(tmp_path: Path) -> None:
    status, told, log = count_on("300k", "early", tmp_path)
    assert status == 0, log
    assert log.count("metrics_have_no_room") == 1
    assert told == {"first": True, "series": 4001}
