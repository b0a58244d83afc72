"""The state of a first start, made once a run: a migrated and seeded database, and the storage that goes with it.

Making it takes seconds of processor time (initdb, all migrations, the seeds), copying it a fraction of one, and dozens
of tests need a system of their own. What a first start does itself is tested elsewhere (embedded, supervisor, deploy).
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloud.embedded import ensure, state
from cloud.embedded.state import ServerState, State
from cloud.supervisor import plan as plans
from tests.ports import free_port

# The run's own folder, which is removed at its end (cloud.embedded.pytest_plugin); all its processes share it.
_HOME: Final = Path(os.environ["VISIONA_STORAGE_DIR"]).parent
_SHAPED_BY: Final = ("VISIONA_STORAGE_", "VISIONA_S3_")
"""Settings that decide where the seeds lie: with one of them a system starts from nothing."""


def fits(settings: Mapping[str, str]) -> bool:
    """Whether a system with these settings of its own may start from the copy."""
    return not any(name.startswith(_SHAPED_BY) for name in settings)


def pour(var: Path) -> dict[str, str]:
    """Put the state of a first start below ``var``, which is empty; what the seeds tell (e-mail, password, serial).

    The first caller of a run makes it, others wait for it.
    """
    mould = _HOME / "mould"
    _HOME.mkdir(parents=True, exist_ok=True)
    with (_HOME / "mould.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (mould / "login.json").exists():
            _make(mould)
    var.mkdir(parents=True)
    # `cp` keeps the owner: a PostgreSQL that root has started runs as another user, and takes nobody else's data.
    subprocess.run(["cp", "-a", mould / "postgres", mould / "storage", var], check=True, timeout=120)
    (var / "postgres" / "postmaster.pid").unlink(missing_ok=True)
    kept = state.load(mould).postgres
    served = ServerState(port=free_port(), password=kept.password, admin_password=kept.admin_password)
    state.save(var, State(postgres=served, valkey=ServerState(port=free_port())))
    login: dict[str, str] = json.loads((mould / "login.json").read_text())
    return login


def _make(mould: Path) -> None:
    base = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
    environ = base | {"VISIONA_STORAGE_DIR": str(mould / "storage"), "VISIONA_EMAIL_DIR": str(mould / "mail")}
    with ensure(mould, environ, who="system test", durable=False):
        login = migrate_and_seed(plans.make(mould, environ))
    (mould / "login.json").write_text(json.dumps(login))


def migrate_and_seed(plan: plans.Plan) -> dict[str, str]:
    """The schema and the seeds into the plan's database; what the seeds tell."""
    prepare = [sys.executable, "-m", "cloud.supervisor.database"]
    done = subprocess.run(prepare, cwd=plans.ROOT, env=plan.environ, timeout=180, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    login: dict[str, str] = json.loads(done.stdout)
    return login
