"""`python -m tunnel`: the composition root of the daemon, and its only trio.run."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial

import trio
from dotenv import dotenv_values

from tunnel import __version__
from tunnel.contract import BY_NAME, PREFIX, SettingError
from tunnel.daemon.config import TunnelConfig, load
from tunnel.daemon.node import Daemon
from tunnel.daemon.ports import PortInUse, Ports, bind
from tunnel.daemon.prefork import INTERRUPT, Prefork, bind_all
from tunnel.logs import JsonLog, capture_libraries
from tunnel.net.descriptors import raise_limit
from tunnel.net.memory import calm_collector, keep_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until SIGTERM or SIGINT. 0: ended in order; 1: could not start, with one line that says why;
    2: a command line that is not understood."""
    given = _parser().parse_args(arguments)
    # stderr for what an operator reads once, stdout for the log
    try:
        config, warnings = load(_environment() | _overrides(given))
        several = config.workers > 1
        ports = bind_all(config, config.workers) if several else [bind(config)]
    except (SettingError, PortInUse) as error:
        print(f"tunnel: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 1
    log = JsonLog(sys.stdout.buffer, level=config.log_level, node="" if several else config.node)
    for warning in warnings:
        log.warning("setting", message=warning)
    try:
        if several:
            return Prefork(config, ports, log, _work).run()
        return _serve(config, ports[0], log, None)
    finally:
        for each in ports:
            each.close()
        log.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tunnel",
        description="The tunnel daemon: holds the agents' tunnels and carries streams through them.",
        epilog="Everything else is set through VISIONA_* in the environment or in .env; .env.example lists the names.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        help=f"processes on this host, each a node of its own ({PREFIX}TUNNEL_WORKERS; default 1)",
    )
    parser.add_argument("--version", action="version", version=f"visiona tunnel {__version__}")
    return parser


def _overrides(given: argparse.Namespace) -> dict[str, str]:
    """What the command line says, under the setting's name: one place checks the values."""
    name = BY_NAME["TUNNEL_WORKERS"].name
    return {PREFIX + name: given.workers} if given.workers else {}


def _environment() -> dict[str, str]:
    """The process's environment over what `.env` in the current folder holds."""
    from_file = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return from_file | dict(os.environ)


def _work(config: TunnelConfig, ports: Ports, orders: int) -> int:
    """One of several workers: its own log, and orders from the parent."""
    return _serve(config, ports, JsonLog(sys.stdout.buffer, level=config.log_level, node=config.node), orders)


def _serve(config: TunnelConfig, ports: Ports, log: JsonLog, orders: int | None) -> int:
    capture_libraries(log)
    raise_limit()
    keep_memory()
    calm_collector()
    try:
        trio.run(_run, config, ports, log, orders)
    except KeyboardInterrupt:
        return 130  # before the signals were ours to obey
    finally:
        log.flush()
    return 0


async def _run(config: TunnelConfig, ports: Ports, log: JsonLog, orders: int | None) -> None:
    daemon = Daemon(config, ports, log, version=__version__)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(_obey_signals, daemon, log, repeated=orders is None))
        if orders is not None:
            nursery.start_soon(_obey_parent, daemon, log, orders)
        await daemon.run()
        nursery.cancel_scope.cancel()


async def _obey_signals(daemon: Daemon, log: JsonLog, *, repeated: bool) -> None:
    """`repeated`: a second signal cuts the grace short. A worker leaves that to its parent, since one signal to the
    whole group reaches it twice."""
    obeyed = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal", name=signal.Signals(number).name)
            if repeated or not (obeyed or daemon.draining):
                _end(daemon, interrupt=number == signal.SIGINT)
            obeyed = True


async def _obey_parent(daemon: Daemon, log: JsonLog, orders: int) -> None:
    """Orders, one byte each; the end: the parent was killed, and what it left behind must not hold the ports."""
    os.set_blocking(orders, False)
    first = True
    while True:
        await trio.lowlevel.wait_readable(orders)
        given = os.read(orders, 1)
        if not given:
            break
        if not first or not daemon.draining:  # that it drains already may be the same signal's doing
            _end(daemon, interrupt=given == INTERRUPT)
        first = False
    log.error("parent_gone")
    daemon.interrupt()
    daemon.interrupt()  # without a grace


def _end(daemon: Daemon, *, interrupt: bool) -> None:
    if interrupt:
        daemon.interrupt()
    else:
        daemon.drain()


if __name__ == "__main__":
    sys.exit(main())
