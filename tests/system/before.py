"""A real agent before a test's own local port, in a `Stack`."""

import subprocess
import sys
from pathlib import Path

from cloud.supervisor import plan as plans
from tests.conftest import Started
from tests.system.stack import Stack


def agent_before(stack: Stack, name: str, port: int, folder: Path) -> Started:
    """An agent of the demo user that serves the local `port`; paired as `name` unless its credential is there."""
    credential = folder / f"{name}.json"
    argv = [sys.executable, "-m", "tunnel.agent", "run", "--url", f"http://127.0.0.1:{stack.tunnel_port}"]
    argv += ["--local", f"127.0.0.1:{port}", "--credentials", str(credential)]
    if not credential.exists():
        made = stack.call("POST", "/api/pairing/token", {"name": name})
        assert made.status == 201, made.body
        argv += ["--pairing-token", made.data["token"]]
    log = folder / f"{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv, cwd=plans.ROOT, env=dict(stack.plan.environ), stdout=out, stderr=out, start_new_session=True
        )
    return Started(name, process, log)
