# ruff: noqa: N999 - gunicorn looks for a file of this name
"""gunicorn's settings for the API: `gunicorn -c cloud/gunicorn.conf.py cloud.wsgi`. Names are gunicorn's own.

Limits on heads are the worker class's; what gunicorn has of its own is opened as far as it goes.
"""

import math
import os
import resource
from typing import Any

from apps.common.cores import cores, free_number
from cloud.server import listener, master
from tunnel.contract import BY_NAME, PREFIX, SettingError, parse_setting


def _setting(name: str) -> Any:
    """A setting's typed value. Exits with one line for a bad one: gunicorn would print a traceback."""
    setting = BY_NAME[name]
    try:
        return parse_setting(setting, os.environ.get(PREFIX + name, "").strip() or setting.default)
    except SettingError as error:
        raise SystemExit(str(error)) from None


def _connections(threads: int) -> int:
    """As many connections as the process may have files, less what threads, pools and logs need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(threads + 16, wanted - 4 * threads - 64)


_host = _setting("BIND_HOST") or ("0.0.0.0" if _setting("ENV") == "production" else "127.0.0.1")  # noqa: S104 - in a container
bind = [f"[{_host}]:{_setting('API_PORT')}" if ":" in _host else f"{_host}:{_setting('API_PORT')}"]
worker_class = "cloud.server.worker.ApiWorker"
workers = _setting("API_WORKERS")
threads = _setting("API_THREADS")
worker_connections = _connections(threads)
backlog = 2048
timeout = 60  # s without a sign of a worker's main loop; requests themselves are not bounded by it
_lameduck = _setting("LAMEDUCK_SECONDS")
graceful_timeout = 30 + math.ceil(_lameduck)  # from SIGTERM on, the lame-duck time included
keepalive = 30

# The worker class bounds heads to 32 KiB, 100 fields and a target of 8 KiB.
limit_request_line = 0
limit_request_fields = 100
limit_request_field_size = 32768
http_parser = "python"
header_map = "drop"  # names with `_` reach views by visiona.raw_headers alone

# Whom to believe about scheme and address is VISIONA_TRUSTED_PROXIES, which the app applies.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""

logger_class = "cloud.server.log.JsonLogger"
loglevel = _setting("LOG_LEVEL")
errorlog = "-"
accesslog = "-" if loglevel == "debug" else None
control_socket_disable = True
proc_name = "visiona-api"


def on_starting(server: Any) -> None:
    """Before the sockets are opened: what cannot start ends here, with one line."""
    master.prepare(server.app.wsgi)
    listener.bind(server)


def pre_fork(server: Any, worker: Any) -> None:
    """In the master: what the worker is to know of its settings, and the number by which it chooses its core."""
    worker.lameduck_seconds = _lameduck
    worker.core_number = free_number(each.core_number for each in server.WORKERS.values())


def post_fork(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's interface
    """In the worker, before it has threads."""
    master.begin_to_count()
    if _setting("API_PINNED"):
        cores.stay(worker.core_number)


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's interface
    """In the master, after a worker's end, however it came: nobody leaves connections to it any more."""
    master.forget_worker(worker.pid)
    if worker.place is not None:
        worker.place.free()


def on_exit(server: Any) -> None:  # noqa: ARG001 - gunicorn's interface
    """The last act of the master."""
    master.clean_up()
