"""The agent's log: one line an event, JSON for machines or plain for people, on stderr. It knows no secret."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

log: Final = logging.getLogger("visiona-agent")
Format = Literal["auto", "json", "text"]


def event(level: int, name: str, **facts: Any) -> None:
    """Log `name` with `facts`; those that are None are left out."""
    if log.isEnabledFor(level):
        log.log(level, name, extra={"facts": {key: value for key, value in facts.items() if value is not None}})


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
        try:
            return orjson.dumps(line, default=str).decode()  # there is a line a request: a third of `json`'s time
        except orjson.JSONEncodeError:  # text that no UTF-8 can hold, as a peer may send it
            return json.dumps(line, default=str)


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False
