"""What gunicorn's master does beside its own work. Standard library only.

It stays free of Django, so that a reload (SIGHUP) takes new code, and free of connections, which must not be forked.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


def prepare() -> None:
    """Settings, servers, schema, seeds (`cloud.startup`), in a process of its own, before anything listens.

    Ends this process, with the one line already written, if something is missing. Then names a fresh folder to
    prometheus_client, in which the workers count.
    """
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-m", "cloud.startup"], cwd=root, check=False)
    if done.returncode:
        sys.exit(max(done.returncode, 1))
    if folder := _fresh_folder():
        os.environ[_FOLDER] = str(folder)


def _fresh_folder() -> Path | None:
    """An empty folder of this port's, so that what a killed master left behind is swept by the next one."""
    port = os.environ.get("VISIONA_API_PORT", "").strip() or "3721"
    folder = Path(tempfile.gettempdir()) / f"visiona-metrics-{os.getuid()}-{port}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # somebody else's
        return Path(tempfile.mkdtemp(prefix="visiona-metrics-"))
    except OSError as error:  # the workers then count each for itself
        print(f"visiona: no folder for the metrics, {folder}: {error.strerror}", file=sys.stderr)  # noqa: T201 - one line
        return None
    return folder


def forget_worker(pid: int) -> None:
    """What a worker held it holds no more; what it has counted stays."""
    if folder := os.environ.get(_FOLDER, ""):
        for file in Path(folder).glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)


def clean_up() -> None:
    """Removes what `prepare` made."""
    if folder := os.environ.pop(_FOLDER, ""):
        shutil.rmtree(folder, ignore_errors=True)
