"""The agent's log: one line an event, JSON for machines or plain for people, on stderr. It knows no secret.

There is a line a request, so JSON goes past the logging module: made by orjson, gathered, written by a task (`run`).
Only what that module alone knows, exceptions, comes from it, into the same lines.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

from tunnel.logs import JsonLog

log: Final = logging.getLogger("visiona-agent")
Format = Literal["auto", "json", "text"]
_NAMES: Final = {
    logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error",
}  # fmt: skip


class _Lines(JsonLog, logging.Handler):
    """The lines on their way to stderr, from here and from the logging module."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        JsonLog.__init__(self, sys.stderr.buffer, service=log.name)
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self.format(record).encode() + b"\n")

    def say(self, level: int, name: str, facts: dict[str, Any]) -> None:
        """Log `name` with `facts`."""
        now = time.time()
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        line = {"at": at, "level": _NAMES[level], "logger": log.name, "event": name, **facts}
        self._put(_json(line) + b"\n")


def event(level: int, name: str, **facts: Any) -> None:
    """Log `name` with `facts`; those that are None are left out."""
    if log.isEnabledFor(level):
        told = {key: value for key, value in facts.items() if value is not None}
        lines = _lines()
        if lines is None:
            log.log(level, name, extra={"facts": told})
        else:
            lines.say(level, name, told)


async def run() -> None:
    """Write the lines as they come, until cancelled, so that a slow reader of the log holds up no request.

    Before and after, each is written at once. Text is for people, and is written at once always.
    """
    lines = _lines()
    if lines is not None:
        await lines.run()


def _lines() -> _Lines | None:
    """Where JSON goes; None: the log is text, or somebody else's."""
    handlers = log.handlers
    return handlers[0] if handlers and isinstance(handlers[0], _Lines) else None


def _json(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, default=str)  # a third of `json`'s time
    except orjson.JSONEncodeError:  # text that no UTF-8 can hold, as a peer may send it
        return json.dumps(line, default=str).encode()


def info(name: str, **facts: Any) -> None:
    event(logging.INFO, name, **facts)


def warning(name: str, **facts: Any) -> None:
    event(logging.WARNING, name, **facts)


def error(name: str, **facts: Any) -> None:
    event(logging.ERROR, name, **facts)


def debug(name: str, **facts: Any) -> None:
    event(logging.DEBUG, name, **facts)


class JsonFormatter(logging.Formatter):
    """`{"at", "level", "logger", "event", …facts}`; an exception becomes `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _json(line).decode()


class TextFormatter(logging.Formatter):
    """`12:00:00 info  event  key=value …`, control characters made harmless."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        facts = " ".join(f"{key}={_plain(value)}" for key, value in getattr(record, "facts", {}).items())
        line = f"{at} {record.levelname.lower():7} {record.getMessage()} {facts}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _plain(value: Any) -> str:
    text = str(value)
    return repr(text) if not text.isprintable() or " " in text or not text else text


def setup(level: str, style: Format) -> None:
    """Send the log to stderr; `auto` is text on a terminal and JSON elsewhere."""
    if style == "auto":
        style = "text" if sys.stderr.isatty() else "json"
    handler: logging.Handler = _Lines()
    if style == "text":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(TextFormatter())
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False
