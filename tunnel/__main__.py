"""`python -m tunnel`: the composition root of the daemon, and its only trio.run."""

from __future__ import annotations

import os
import signal
import sys
from importlib import metadata

import trio
from dotenv import dotenv_values

from tunnel.config import TunnelConfig, load
from tunnel.contract import SettingError
from tunnel.logs import JsonLog, capture_libraries
from tunnel.runtime.daemon import Daemon, PortInUse, Ports, bind


def main() -> int:
    """Run the daemon until SIGTERM or SIGINT. 0: ended in order; 1: could not start, with one line that says why."""
    # stderr for what an operator reads once, stdout for the log
    try:
        config, warnings = load(_environment())
        ports = bind(config)
    except (SettingError, PortInUse) as error:
        print(f"tunnel: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 1
    log = JsonLog(sys.stdout.buffer, level=config.log_level, node=config.node)
    capture_libraries(log)
    for warning in warnings:
        log.warning("setting", message=warning)
    try:
        trio.run(_run, config, ports, log)
    except KeyboardInterrupt:
        return 130  # before the signals were ours to obey
    finally:
        ports.close()
        log.flush()
    return 0


def _environment() -> dict[str, str]:
    """The process's environment over what `.env` in the current folder holds."""
    from_file = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return from_file | dict(os.environ)


async def _run(config: TunnelConfig, ports: Ports, log: JsonLog) -> None:
    daemon = Daemon(config, ports, log, version=_version())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey_signals, daemon, log)
        await daemon.run()
        nursery.cancel_scope.cancel()


async def _obey_signals(daemon: Daemon, log: JsonLog) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal", name=signal.Signals(number).name)
            if number == signal.SIGTERM:
                daemon.drain()
            else:
                daemon.interrupt()


def _version() -> str:
    try:
        return metadata.version("visiona-agent")
    except metadata.PackageNotFoundError:
        return "0+source"  # run from a checkout that is not installed


if __name__ == "__main__":
    sys.exit(main())
