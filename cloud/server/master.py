"""What gunicorn's master does beside its own work: it loads the application once, for all its workers.

A worker that is forked has it at once; loaded in each, it cost every worker seconds and its own copy in memory. What
the master must not have is connections and threads, which do not outlive a fork: `cloud.startup` asks the servers in a
process of its own.
"""

import gc
import importlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


def prepare(load: Callable[[], object]) -> None:
    """The application (`load`), then settings, servers, schema, seeds (`cloud.startup`), before anything listens.

    Ends this process, with the one line already written, if something is missing. Before, it names a fresh folder to
    prometheus_client, in which the workers count.
    """
    if folder := _fresh_folder():
        os.environ[_FOLDER] = str(folder)
    try:
        load()
        if status := _status_of(_started):
            sys.exit(status)
    except BaseException:
        clean_up()
        raise
    gc.collect()
    gc.freeze()  # a collection in a worker would write to, and so copy, the pages that it shares


def _started() -> int:
    return int(importlib.import_module("cloud.startup").main())  # Django is not loaded before the folder has its name


def _status_of(work: Callable[[], int]) -> int:
    """The exit status of a forked process that does this; 1 for one that was killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = work()
        except Exception:  # noqa: BLE001 - this is the end of the process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    return max(os.waitstatus_to_exitcode(ended), 1) if ended else 0


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


def begin_to_count() -> None:
    """Let a worker count in files of its own; called in its process."""
    metrics = importlib.import_module("apps.common.observability.metrics")  # it reads the folder's name as it is loaded
    metrics.allocate()


def forget_worker(pid: int) -> None:
    """Drop the gauges of a worker that has ended; what it counted stays."""
    if folder := os.environ.get(_FOLDER, ""):
        for file in Path(folder).glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)


def clean_up() -> None:
    """Remove the folder that `prepare` made."""
    if folder := os.environ.pop(_FOLDER, ""):
        shutil.rmtree(folder, ignore_errors=True)
