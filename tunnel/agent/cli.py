"""The command line: `run`, `demo`, `status`, `version`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import trio

from tunnel.agent import logs, settings
from tunnel.agent.addresses import LocalAddress
from tunnel.agent.credentials import CredentialError
from tunnel.agent.dial import DialError
from tunnel.agent.runner import Agent, UsageError
from tunnel.agent.settings import AgentSettings
from tunnel.agent.verdict import EXIT_OK, EXIT_USAGE
from tunnel.agent.version import VERSION
from tunnel.contract import SettingError
from tunnel.net.memory import calm_collector, return_memory

EXIT_CODES: Final = """\b
Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  internal error before anything could be served
  2  wrong usage, settings or credential file; another agent runs with that file
  3  refused (401, 403, close code 4401 or 4403), with --exit-on-refusal only
"""
PAIRING_HELP: Final = (
    "Redeemed at the first run. Any user of the box can read it in `ps`; "
    "VISIONA_AGENT_PAIRING_TOKEN or a settings file is safer."
)


def _connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `run` and `demo` have in common."""
    for option in reversed(
        (
            click.option("--url", "--relay-url", help="The daemon: wss://host (also ws, https, http)."),
            click.option("--pairing-token", "--relay-token", help=PAIRING_HELP),
            click.option("--credentials", help="The credential file (mode 0600)."),
            click.option("--ca-file", help="Certificates of a private CA, PEM; the system's stay trusted."),
            click.option("--serial", help="The box's serial number."),
            click.option("--chip", help="The box's accelerator chip."),
            click.option("--firmware", help="The box's firmware version."),
            click.option(
                "--yamux-role",
                type=click.Choice(["client", "server"]),
                help="The daemon's role in yamux, as its VISIONA_YAMUX_ROLE says; default client.",
            ),
            click.option("--config", type=click.Path(path_type=Path), help="A file of NAME=value lines."),
            click.option(
                "--exit-on-refusal",
                is_flag=True,
                help="End with 3 when the daemon refuses the credential, instead of trying again for ever.",
            ),
            click.option("--log-level", help="debug, info, warn or error."),
            click.option(
                "--log-format",
                type=click.Choice(["auto", "json", "text"]),
                default="auto",
                help="auto: text on a terminal, else JSON.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group(help="Makes one local server of this box reachable through VisionA Cloud.", epilog=EXIT_CODES)
def cli() -> None: ...


@cli.command(help="Connect, serve the local address, reconnect for ever.", epilog=EXIT_CODES)
@click.option("--local", help="The one local address that can be reached; default 127.0.0.1:8080.")
@_connection_options
def run(
    local: str | None, config: Path | None, log_format: logs.Format, exit_on_refusal: bool, **flags: str | None
) -> None:
    told = replace(_load({**flags, "local": local}, config, log_format), exit_on_refusal=exit_on_refusal)

    async def main() -> int:
        return await _until_signal(Agent(told, os.environ))

    sys.exit(_run(main))


@cli.command(help="Serve a simulated box: cameras, inference, USB scan, model upload.", epilog=EXIT_CODES)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="The box's own port on 127.0.0.1; 0: a free one."
)
@click.option("--name", default="Demo box", help="The name in the picture.")
@click.option("--cameras", type=click.IntRange(1, 64), default=2)
@click.option("--box-only", is_flag=True, help="Only the simulated box, no connection to a daemon.")
@_connection_options
def demo(
    port: int,
    name: str,
    cameras: int,
    box_only: bool,
    config: Path | None,
    log_format: logs.Format,
    exit_on_refusal: bool,
    **flags: str | None,
) -> None:
    from tunnel.agent.demo.box import Box  # noqa: PLC0415 - a real box has no use for it in its memory

    told = replace(_load({**flags, "local": None}, config, log_format), exit_on_refusal=exit_on_refusal)

    async def main() -> int:
        async with trio.open_nursery() as nursery:
            box = Box(name, told.serial or "DEMO-0001", cameras)
            bound = await nursery.start(lambda task_status: box.serve(port=port, task_status=task_status))
            logs.info("simulated box is listening", address=f"127.0.0.1:{bound}")
            if box_only:
                code = await _until_signal(None)
            else:
                code = await _until_signal(
                    Agent(replace(told, local=LocalAddress("127.0.0.1", bound)), _demo_environ())
                )
            nursery.cancel_scope.cancel()
            return code

    sys.exit(_run(main))


@cli.command(help="Say how the agent on this box is doing. Exit code 0: connected; 1: not.")
@click.option("--credentials", help="The credential file.")
@click.option("--config", type=click.Path(path_type=Path), help="A file of NAME=value lines.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(credentials: str | None, config: Path | None, as_json: bool) -> None:
    from tunnel.agent import statuspage  # noqa: PLC0415 - rich costs 3 MB of the 40 that a running agent may have

    try:
        told, _ = settings.load({"credentials": credentials}, os.environ, config)
        facts = statuspage.gather(told.credentials)
    except (SettingError, CredentialError) as error:
        raise _usage(error) from None
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        statuspage.show(facts)
    sys.exit(0 if facts["connected"] else 1)


@cli.command(help="The agent's version.")
def version() -> None:
    click.echo(f"visiona-agent {VERSION}")


class _UsageFailure(click.ClickException):
    exit_code = EXIT_USAGE


def _usage(error: Exception) -> click.ClickException:
    return _UsageFailure(str(error))


def _load(flags: dict[str, str | None], config: Path | None, log_format: logs.Format) -> AgentSettings:
    try:
        told, warnings = settings.load(flags, os.environ, config)
    except SettingError as error:
        raise _usage(error) from None
    logs.setup(told.log_level, log_format)
    for line in warnings:
        logs.warning(line)
    return told


def _demo_environ() -> dict[str, str]:
    """The environment, with the daemon on this machine never behind a proxy: a newcomer's company may have one."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    return {**os.environ, "no_proxy": f"{listed},localhost,127.0.0.1,::1"}


async def _until_signal(agent: Agent | None) -> int:
    """Run `agent` (None: nothing) until it ends or a signal asks it to; a second signal ends it at once."""
    code = EXIT_OK
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                async for _ in signals:
                    if agent is None or agent.stopping:
                        nursery.cancel_scope.cancel()
                    else:
                        agent.stop()

            nursery.start_soon(wait)
            if agent is None:
                await trio.sleep_forever()
            else:
                code = await agent.run()
            nursery.cancel_scope.cancel()
    return code


def _run(main: Callable[[], Awaitable[int]]) -> int:
    """`trio.run`, with what the user can mend told in one line."""
    code = EXIT_OK
    calm_collector()
    return_memory()
    try:
        code = trio.run(_logged, main)
    except* (UsageError, CredentialError, DialError, OSError) as group:
        code = _told(group, EXIT_USAGE)
    return code


async def _logged(main: Callable[[], Awaitable[int]]) -> int:
    """`main`, and beside it the task that writes the log."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.run)
        try:
            return await main()
        finally:
            nursery.cancel_scope.cancel()


def _told(group: BaseExceptionGroup[Exception], code: int) -> int:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    click.echo(f"Error: {error}", err=True)
    return code


def main() -> None:
    """The console script."""
    cli(prog_name="visiona-agent")
