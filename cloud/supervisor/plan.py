"""Which programs ``make dev`` runs, with which environment, and when each counts as ready.

Reads the settings that the programs themselves read, so that ports and secrets are the same everywhere.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from cloud.embedded.program import Program
from cloud.environment import database_address
from cloud.supervisor.demo import box_connected
from cloud.supervisor.probes import PROBE_SECONDS, http_status
from tunnel.contract import BY_NAME, PREFIX, SettingError, read_settings

ROOT = Path(__file__).resolve().parents[2]
# The agent's own: refused, with --exit-on-refusal (docs/agent.md). Trying again changes nothing.
REFUSED = frozenset({3})


@dataclass(frozen=True, slots=True)
class Plan:
    """One ``make dev``: the folder of its data, the settings (typed), and the environment of its programs."""

    var: Path
    settings: Mapping[str, Any]
    environ: Mapping[str, str]

    @property
    def api_port(self) -> int:
        """The API's port on this machine."""
        return int(self.settings["API_PORT"])

    @property
    def public_url(self) -> str:
        """The API as a browser on this machine reaches it."""
        return str(self.settings["PUBLIC_URL"])

    def ports(self) -> dict[int, str]:
        """The ports that must be free, and whose they are. Raises SettingError where two settings name one port."""
        ports: dict[int, str] = {}
        for name, whose in (
            ("API_PORT", "the API"),
            ("TUNNEL_PORT", "the tunnel"),
            ("PROXY_INTERNAL_PORT", "the tunnel's internal API"),
        ):
            port, whose = int(self.settings[name]), f"{whose} ({PREFIX}{name})"
            if port in ports:
                raise SettingError(f"port {port} is given to both {ports[port]} and {whose}: change one of them")
            ports[port] = whose
        return ports

    def bind_host(self) -> str:
        """The address that the public ports are bound to."""
        return str(self.settings["BIND_HOST"]) or "127.0.0.1"


def make(var: Path, environ: Mapping[str, str]) -> Plan:
    """The plan for an environment (`.env` included) that may still lack the databases' addresses.

    URLs that nobody set, or that stand as in `.env.example`, follow the ports. Raises SettingError with one line.
    """
    full = {"PYTHONUNBUFFERED": "1", **environ, f"{PREFIX}ENV_STRICT": "true"}
    ports, _ = read_settings(_own(full), "api")
    api, tunnel, internal = (ports[name] for name in ("API_PORT", "TUNNEL_PORT", "PROXY_INTERNAL_PORT"))
    for name, url in {
        "PROXY_INTERNAL_URL": f"http://127.0.0.1:{internal}",
        "NODE_URL": f"http://127.0.0.1:{internal}",
        "API_INTERNAL_URL": f"http://127.0.0.1:{api}",
        "PUBLIC_URL": f"http://localhost:{api}",
        "TUNNEL_PUBLIC_URL": f"http://localhost:{tunnel}",
    }.items():
        if full.get(PREFIX + name, "").strip() in ("", BY_NAME[name].default):
            full[PREFIX + name] = url
    settings, _ = read_settings(_own(full), "api")
    return Plan(var, settings, full)


def _own(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(PREFIX)}


def _python(plan: Plan, name: str, *arguments: str) -> dict[str, Any]:
    return {
        "name": name,
        "argv": (sys.executable, *arguments),
        "cwd": ROOT,
        "env": plan.environ,
        "log": plan.var / "log" / f"{name}.log",
    }


def tunnel(plan: Plan) -> Program:
    """The daemon; ready when both its ports answer (it listens before the API does)."""
    public, internal = int(plan.settings["TUNNEL_PORT"]), int(plan.settings["PROXY_INTERNAL_PORT"])

    def ready(_pid: int) -> bool:
        return http_status(internal, "/healthz") == 200 and http_status(public, "/healthz") != 0

    return Program(**_python(plan, "tunnel", "-m", "tunnel"), ready=ready)


def api(plan: Plan) -> Program:
    """The API; ready when its health check is, PostgreSQL and Valkey included."""
    arguments = ("-m", "gunicorn", "--config", "cloud/gunicorn.conf.py", "cloud.wsgi:application")
    return Program(**_python(plan, "api", *arguments), ready=lambda _pid: http_status(plan.api_port, "/healthz") == 200)


def worker(plan: Plan) -> Program:
    """The worker; ready when it has entered itself in the database."""
    arguments = ("manage.py", "procrastinate", "worker")
    return Program(**_python(plan, "worker", *arguments), ready=partial(_worker_ready, plan))


def _worker_ready(plan: Plan, _pid: int) -> bool:
    try:
        with psycopg.connect(**database_address(plan.settings), connect_timeout=int(PROBE_SECONDS)) as connection:
            fresh = "SELECT 1 FROM procrastinate_workers WHERE last_heartbeat > now() - interval '10 seconds'"
            return connection.execute(fresh).fetchone() is not None
    except psycopg.Error:
        return False


def agent(plan: Plan, login: str, pairing_token: str, serial: str = "") -> Program:
    """The demo box with its agent; ready when the API says that it is connected.

    ``login`` is the demo user's access token; ``pairing_token`` is empty once the box has its credential; by its
    ``serial`` it is the same device after a new pairing.
    """
    environ = {
        **plan.environ,
        f"{PREFIX}AGENT_URL": f"ws://127.0.0.1:{plan.settings['TUNNEL_PORT']}",
        f"{PREFIX}AGENT_CREDENTIALS": str(agent_credentials(plan)),
        f"{PREFIX}AGENT_PAIRING_TOKEN": pairing_token,
        f"{PREFIX}AGENT_SERIAL": serial,
    }
    common = _python(plan, "agent", "-m", "tunnel.agent", "demo", "--exit-on-refusal") | {"env": environ}
    return Program(**common, ready=lambda _pid: box_connected(plan.api_port, login), final=REFUSED)


def is_paired(credentials: Path) -> bool:
    """Whether the file holds a login of the box. One that was broken off while it paired holds none (or is cut short),
    and pairs with a fresh token as a new box does."""
    try:
        stored = json.loads(credentials.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and bool(stored.get("session_token"))


def agent_credentials(plan: Plan) -> Path:
    """Where the demo box keeps its credential."""
    return plan.var / "agent" / "credentials.json"
