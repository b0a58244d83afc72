"""The API's own gunicorn settings, less what prepares a database, for the tests of the worker class."""

from pathlib import Path
from runpy import run_path
from typing import Any

from cloud.server import listener

_OWN = run_path(str(Path(__file__).parents[2] / "cloud" / "gunicorn.conf.py"))
globals().update({name: value for name, value in _OWN.items() if name.islower() and not name.startswith(("_", "on_"))})
worker_class = "tests.system.gunicorn_worker_app.HurriedWorker"
worker_connections = 40


def on_starting(server: Any) -> None:
    """As in production, less the database."""
    listener.bind(server)
