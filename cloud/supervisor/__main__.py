"""``python -m cloud.supervisor``: the composition root of ``make dev``, and its only ``trio.run``."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import trio
from dotenv import dotenv_values

from cloud.embedded import EmbeddedError, servers, state
from cloud.embedded.state import FolderLock
from cloud.supervisor import plan as plans
from cloud.supervisor.bringup import Embedded, bring_up, prepare_logs
from cloud.supervisor.engine import Engine, StartError, running
from cloud.supervisor.plan import ROOT, Plan
from cloud.supervisor.probes import Parent, port_free
from cloud.supervisor.words import welcome
from tunnel.contract import SettingError

LOCK = "dev.lock"
PATIENCE_SECONDS = 20.0
PARENT_SECONDS = 0.5
LOG_LIMIT_BYTES = 10 << 20


def say(line: str) -> None:
    """To the user, at once; a terminal that is gone is no reason to fail."""
    with suppress(OSError):
        print(f"visiona: {line}", flush=True)  # noqa: T201 - this is a command line program


@contextmanager
def _locked(folder: Path, name: str, in_use: str) -> Iterator[FolderLock]:
    """Hold a lock; an owner on its way out is waited for, one that runs is told of. Raises StartError."""
    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
    while (lock := FolderLock.take(folder, name, "make dev")) is None:
        owner = state.owner(folder, name)
        brief = owner is None or owner.ending() or owner.who.startswith("manage.py")
        if not brief or time.monotonic() > deadline:
            who = f"{owner.who}, process {owner.pid}" if owner else "process unknown"
            raise StartError(f"{in_use} ({who}); end it first")
        if not told and owner is not None:
            say(f"waiting for {owner.who} (process {owner.pid}) to end")
            told = True
        time.sleep(0.1)
    try:
        yield lock
    finally:
        lock.release()


def _check_ports(plan: Plan) -> None:
    for port, whose in plan.ports().items():
        if not port_free(port, plan.bind_host()):
            raise StartError(f"port {port} of {whose} is in use by another program")


async def _supervise(plan: Plan, embedded: Embedded | None, locks: list[FolderLock], parent: Parent) -> int:
    status = 0
    until_stop = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, until_stop)
        nursery.start_soon(_stop_with_parent, until_stop, parent)
        async with running(say, [lock.fileno() for lock in locks]) as engine:
            with until_stop:
                try:
                    await _run(engine, plan, embedded)
                except StartError as error:
                    say(str(error))
                    status = 1
            for lock in locks:
                lock.tell("ending")
        nursery.cancel_scope.cancel()
    if status == 0:
        say("everything has ended")
    return status


async def _run(engine: Engine, plan: Plan, embedded: Embedded | None) -> None:
    begun = trio.current_time()
    login = await bring_up(engine, plan, embedded, say)
    took = trio.current_time() - begun
    with suppress(OSError):
        print(welcome(plan.public_url, login, plan.var / "log", took), flush=True)  # noqa: T201 - for who started it
    await trio.sleep_forever()


async def _stop_on_signal(until_stop: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            if not until_stop.cancel_called:
                say("stopping")
            until_stop.cancel()


async def _stop_with_parent(until_stop: trio.CancelScope, parent: Parent) -> None:
    while True:
        await trio.sleep(PARENT_SECONDS)
        if parent.wants_end():
            until_stop.cancel()
            return


def _environment() -> dict[str, str]:
    """The process's environment over `.env`; an empty value is none."""
    file = {name: value for name, value in dotenv_values(ROOT / ".env").items() if value}
    return {**file, **{name: value for name, value in os.environ.items() if value}}


def _start(var: Path, parent: Parent) -> int:
    environ = _environment()
    plan = plans.make(var, environ)
    with ExitStack() as stack:
        dev = stack.enter_context(_locked(var, LOCK, "`make dev` runs here already"))
        dev.tell("running")
        _check_ports(plan)
        prepare_logs(var / "log", LOG_LIMIT_BYTES)
        locks, embedded = [dev], None
        if wanted := servers.needs(environ):
            lock = stack.enter_context(_locked(var, servers.LOCK, f"the databases in {var} are in use"))
            prepared = servers.prepare(var, wanted, say)
            plan = plans.make(var, {**environ, **prepared.addresses()})
            locks.append(lock)
            embedded = Embedded(prepared, lock)
        return trio.run(_supervise, plan, embedded, locks, parent)


def main() -> int:
    """The command line: 0 after an orderly stop, 1 with one line when it cannot be started."""
    parser = argparse.ArgumentParser(prog="python -m cloud.supervisor", description="Run all of VisionA Cloud here.")
    parser.add_argument("--var", type=Path, default=ROOT / "var", help="folder of data and logs (default: var)")
    var = parser.parse_args().var.resolve()
    parent = Parent()
    try:
        return _start(var, parent)
    except (SettingError, EmbeddedError, StartError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
