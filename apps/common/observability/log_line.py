"""What each log line holds, the secrets that are masked in it, and the hot path's lines, written without `logging`.

A line through structlog and the standard library's logging costs a worker three times as much as one that is put
together here (benchmarks/NOTES.md). So the line of each request (`request`, or `forward` where a box answered) is
written here, and all other lines go through `logging`.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from structlog.contextvars import get_contextvars

_TOKEN: Final = re.compile(r"(vA[ucs]_)[0-9a-f]{8,}")
_SIGNED: Final = re.compile(r"(/storage/)[^\s/?\"'<>]+")
_QUERY: Final = re.compile(r"(/[^\s?\"'<>]*)\?[^\s\"'<>]*")


def mask(text: str) -> str:
    """The text without the secret part of our tokens and signed paths, and without any URL's query."""
    return _QUERY.sub(r"\1", _SIGNED.sub(r"\1***", _TOKEN.sub(r"\1***", text)))


def mask_values(event: MutableMapping[str, Any]) -> None:
    """`mask` for each text among the values, in place."""
    for key, value in event.items():
        if isinstance(value, str) and ("?" in value or "vA" in value or "/storage/" in value):
            event[key] = mask(value)


def dumps(event: MutableMapping[str, Any]) -> bytes:
    """One line, without its end."""
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS)


def write(line: bytes) -> None:
    """Write one whole line to standard error, like all lines of the process.

    A line that cannot be written is lost, as with `logging`: a full disk or a closed pipe must not fail the request
    that the line is about.
    """
    with suppress(OSError, ValueError):
        stderr = sys.stderr.buffer
        stderr.write(line)
        stderr.flush()


class HotLog:
    """Lines of the level info under one logger's name, as structlog would write them."""

    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger = logging.getLogger(name)  # asked for its level only

    def info(self, event: str, **facts: Any) -> None:
        """One line: the facts, what is bound to the context (the request's id), the time."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        line = {**get_contextvars(), **facts, "event": event, "level": "info", "logger": self._name}
        line["time"] = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        mask_values(line)
        write(dumps(line) + b"\n")
