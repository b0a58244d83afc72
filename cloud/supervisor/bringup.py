"""The order in which ``make dev`` comes up, and why."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from cloud.embedded.program import Program, last_words
from cloud.embedded.servers import Servers
from cloud.embedded.state import FolderLock
from cloud.supervisor import plan as plans
from cloud.supervisor.demo import DemoError, log_in, new_pairing_token
from cloud.supervisor.engine import Engine, StartError
from cloud.supervisor.plan import ROOT, Plan

PREPARE_SECONDS = 120.0
_Start = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Login:
    """The demo user's login; ``token`` is empty when the login is refused."""

    email: str
    password: str
    token: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """The embedded servers and the lock that says that they are ours."""

    servers: Servers
    lock: FolderLock


async def bring_up(engine: Engine, plan: Plan, embedded: Embedded | None, say: Callable[[str], None]) -> Login:
    """Start everything; returns when all is ready. Raises StartError with the line for the user."""
    # The daemon needs no database, and it has to listen before the API does: agents are admitted as soon as the API
    # answers. So it comes up beside the databases and the migrations.
    databases = embedded.servers.programs if embedded else ()
    ready = trio.Event()
    login: list[Login] = []

    async def prepare() -> None:
        await ready.wait()
        login.append(await _prepare_database(plan))

    async def serve_databases() -> None:
        await _together(*(_starter(engine, program, embedded) for program in databases))
        if embedded is not None:
            embedded.lock.tell("running")
        ready.set()

    await _together(_starter(engine, plans.tunnel(plan)), serve_databases, prepare)
    say("databases and tunnel are ready")
    await _together(_starter(engine, plans.api(plan)), _starter(engine, plans.worker(plan)))
    say("API and worker are ready")
    found = login[0]
    try:
        token = await trio.to_thread.run_sync(log_in, plan.api_port, found.email, found.password)
    except DemoError as error:
        say(f"the demo box stays away, since the demo user cannot log in: {error}")
        return found
    found = Login(found.email, found.password, token)
    await _start_box(engine, plan, token)
    return found


async def _start_box(engine: Engine, plan: Plan, token: str) -> None:
    """With the credential of an earlier run; with a new pairing when there is none or it was revoked."""
    credentials = plans.agent_credentials(plan)
    if credentials.exists():
        try:
            await engine.start(plans.agent(plan, token, ""))
        except StartError as error:
            if error.status not in plans.REFUSED:
                raise
            credentials.unlink(missing_ok=True)
        else:
            return
    try:
        pairing = await trio.to_thread.run_sync(new_pairing_token, plan.api_port, token)
    except DemoError as error:
        raise StartError(f"the demo box could not be paired: {error}") from error
    await engine.start(plans.agent(plan, token, pairing))


def _starter(engine: Engine, program: Program, embedded: Embedded | None = None) -> _Start:
    return lambda: engine.start(program, embedded.servers.started if embedded else None)


async def _together(*starts: _Start) -> None:
    """All at once; the first that fails cancels the rest, and its own error is raised (no group of one)."""
    failed: list[StartError] = []

    async def one(start: _Start, scope: trio.CancelScope) -> None:
        try:
            await start()
        except StartError as error:
            failed.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for start in starts:
            nursery.start_soon(one, start, nursery.cancel_scope)
    if failed:
        raise failed[0]


async def _prepare_database(plan: Plan) -> Login:
    """Migrate and seed; the demo login."""
    path = plan.var / "log" / "migrate.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as log:
        done = await _run(plan, log)
    if done is None:
        raise StartError(f"the migrations took longer than {PREPARE_SECONDS:g} s (see {path})")
    if done.returncode:
        raise StartError(f"the database could not be prepared: {last_words(path)} (more in {path})")
    return Login(**json.loads(done.stdout), token="")


async def _run(plan: Plan, log: IO[bytes]) -> "subprocess.CompletedProcess[bytes] | None":
    async def kill(process: trio.Process) -> None:
        with suppress(ProcessLookupError):
            process.kill()

    with trio.move_on_after(PREPARE_SECONDS):
        return await trio.run_process(
            [sys.executable, "-m", "cloud.supervisor.database"],
            cwd=ROOT,
            env=dict(plan.environ),
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            stderr=log,
            check=False,
            start_new_session=True,
            deliver_cancel=kill,
        )
    return None


def rotate_logs(folder: Path, limit: int) -> None:
    """Put logs above ``limit`` bytes aside (one generation), before anybody writes."""
    for path in folder.glob("*.log"):
        if path.stat().st_size > limit:
            path.replace(path.with_suffix(".log.1"))
