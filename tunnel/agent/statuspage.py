"""`visiona-agent status`: what the credential file and the state file tell, for people and for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunnel.agent import credentials


def gather(path: Path) -> dict[str, Any]:
    """The facts; never a token. `state` is the running agent's own word, or `not running`. Raises CredentialError."""
    stored = credentials.load(path)
    state = credentials.read_state(path) or {}
    running = credentials.in_use(path)
    phase = str(state.get("phase", "unknown")) if running else "not running"
    facts: dict[str, Any] = {
        "state": phase,
        "connected": phase == "connected",
        "paired": bool(stored and stored.session_token),
        "credentials": str(path),
        "url": (stored.url if stored else "") or state.get("url") or None,
        "device_id": (stored.device_id if stored else "") or None,
        "session": state.get("session") or None if running else None,
        "since": state.get("since"),
        "pid": state.get("pid") if running else None,
    }
    names = (
        "local", "local_answers", "version", "attempt", "next_attempt_in", "last_error", "last_error_at", "updated_at",
    )  # fmt: skip
    return facts | {name: state.get(name) for name in names}


def show(facts: dict[str, Any]) -> None:
    """Print the facts as a table."""
    bad = facts["state"] in ("not running", "stopped", "refused")
    colour = "green" if facts["connected"] else "red" if bad else "yellow"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    since = escape(f" since {facts['since']}" if facts["since"] else "")
    table.add_row("state", f"[{colour}]{escape(facts['state'])}[/]{since}")
    table.add_row("paired", "yes" if facts["paired"] else "no: run the agent once with --pairing-token")
    labels = {
        "device_id": "device",
        "url": "daemon",
        "local": "local server",
        "session": "session",
        "next_attempt_in": "next attempt (s)",
        "pid": "process",
        "version": "version",
        "credentials": "credential file",
    }
    for name, label in labels.items():
        if facts.get(name) is not None:
            table.add_row(label, escape(str(facts[name])))  # a peer's words may be in it: no markup
        if name == "local" and facts.get("local_answers") is False:
            table.add_row("", "[red]nothing answers there[/]")
    if facts.get("last_error"):
        table.add_row("last error", escape(f"{facts['last_error']} ({facts['last_error_at']})"))
    Console(highlight=False).print(table)
