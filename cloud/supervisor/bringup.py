"""The order in which ``make dev`` comes up, and why."""

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import trio

from cloud.embedded.program import Program, last_words
from cloud.embedded.servers import Servers
from cloud.embedded.state import FolderLock
from cloud.supervisor import plan as plans
from cloud.supervisor.demo import DemoError, log_in
from cloud.supervisor.engine import Engine, StartError
from cloud.supervisor.plan import ROOT, Plan

PREPARE_SECONDS = 120.0
_Start = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Login:
    """The demo user's login; ``token`` is the access token, empty when the login was refused."""

    email: str
    password: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Seeded:
    """What `manage.py seed --json` tells: the demo user's login, and what pairs the demo box."""

    login: Login
    serial: str
    pairing_token: str


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
    seeds: list[Seeded] = []

    async def prepare() -> None:
        await ready.wait()
        seeds.append(await _prepare_database(plan))

    async def serve_databases() -> None:
        await _together(*(_starter(engine, program, embedded) for program in databases))
        if embedded is not None:
            embedded.lock.tell("running")
        ready.set()

    await _together(_starter(engine, plans.tunnel(plan)), serve_databases, prepare)
    say("databases and tunnel are ready")
    await _together(_starter(engine, plans.api(plan)), _starter(engine, plans.worker(plan)))
    say("API and worker are ready")
    (seeded,) = seeds
    try:
        token = await trio.to_thread.run_sync(log_in, plan.api_port, seeded.login.email, seeded.login.password)
    except DemoError as error:
        say(f"the demo box stays away, since the demo user cannot log in: {error}")
        return seeded.login
    await _start_box(engine, plan, seeded, token, say)
    return replace(seeded.login, token=token)


async def _start_box(engine: Engine, plan: Plan, seeded: Seeded, token: str, say: Callable[[str], None]) -> None:
    """The demo box, with the credential of an earlier run or else with the seeded pairing.

    It is no part of the product: whatever keeps it away is told in one line, and everything else goes on.
    """
    try:
        if plans.is_paired(plans.agent_credentials(plan)):
            try:
                await engine.start(plans.agent(plan, token, "", seeded.serial))
            except StartError as error:
                if error.status not in plans.REFUSED:
                    raise
                plans.agent_credentials(plan).unlink(missing_ok=True)
            else:
                return
        await engine.start(plans.agent(plan, token, seeded.pairing_token, seeded.serial))
    except StartError as error:
        say(f"the demo box stays away; everything else runs: {error}")


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


async def _prepare_database(plan: Plan) -> Seeded:
    """Migrate and seed."""
    path = plan.var / "log" / "migrate.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as log:
        done = await _run(plan, log)
    if done is None:
        raise StartError(f"the migrations took longer than {PREPARE_SECONDS:g} s (see {path})")
    if done.returncode:
        raise StartError(f"the database could not be prepared: {last_words(path)} (more in {path})")
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
        return Seeded(Login(facts["email"], facts["password"]), facts["serial"], facts["pairing_token"])
    except (IndexError, KeyError, ValueError) as error:
        raise StartError(f"the seed said something else than expected ({error!r}; see {path})") from error


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


def prepare_logs(folder: Path, limit: int) -> None:
    """Put logs above ``limit`` bytes aside (one generation), before anybody writes. Raises StartError.

    A folder that an earlier start by another user (root, say) has left is told here, once for all programs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.log"):
            if path.stat().st_size > limit:
                path.replace(path.with_suffix(".log.1"))
    except OSError as error:
        raise StartError(f"{folder} cannot be used: {error.strerror}") from error
    for path in (folder, *folder.glob("*.log")):
        if not os.access(path, os.W_OK):
            raise StartError(f"{path} cannot be written: it belongs to another user")
