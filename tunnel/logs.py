"""JSON log lines, cheap enough for one a stream: orjson into a bounded buffer that a task writes out.

Never a token, never a query string: callers pass facts, not requests. It does not know who reads the log.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import orjson
import trio

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_FLUSH_SECONDS: Final = 0.2
_MAX_LINES: Final = 20_000
_FILE_PIECE: Final = 64 * 1024  # opened for appending, as all of ours are: each write goes to the end as a whole


class JsonLog:
    """Lines to one binary file. What cannot be written in time is dropped, oldest first, and counted."""

    def __init__(self, out: BinaryIO, *, level: str = "info", node: str = "", service: str = "tunnel") -> None:
        self._out = out
        self._level = LEVELS[level]
        self._node = node
        self._service = service
        self._piece = _piece_of(out)
        self._second = -1
        self._date = b""
        self._named = b'Z","level":"info","service":%b,"node":%b,"event":' % (orjson.dumps(service), orjson.dumps(node))
        self._lines: deque[bytes] = deque()
        self._taken = b""
        self._writing = threading.Lock()
        self._waiting = trio.lowlevel.ParkingLot()
        self._parked = False
        self._running = False
        self.dropped = 0

    def debug(self, event: str, **facts: Any) -> None:
        """For whoever looks for a fault."""
        self._add("debug", event, facts)

    def info(self, event: str, **facts: Any) -> None:
        """For the record."""
        self._add("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        """Somebody should know."""
        self._add("warning", event, facts)

    def error(self, event: str, **facts: Any) -> None:
        """Somebody should act."""
        self._add("error", event, facts)

    def info_json(self, facts: bytes) -> None:
        """An `info` line for hot paths: `facts` is JSON from the event's value on, `"event","name":value,…}`."""
        if self._level > LEVELS["info"]:
            return
        now = time.time()
        second = int(now)
        if second != self._second:
            self._new_second(second)
        self._put(b'{"at":"%b.%03d%b%b\n' % (self._date, (now - second) * 1000, self._named, facts))

    def _add(self, level: str, event: str, facts: dict[str, Any]) -> None:
        if LEVELS[level] < self._level:
            return
        now = time.time()
        second = int(now)
        if second != self._second:
            self._new_second(second)
        at = f"{self._date.decode()}.{int((now - second) * 1000):03d}Z"
        line = {"at": at, "level": level, "service": self._service, "node": self._node, "event": event, **facts}
        self._put(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE))

    def _new_second(self, second: int) -> None:
        self._second = second
        self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()

    def _put(self, line: bytes) -> None:
        if len(self._lines) >= _MAX_LINES:
            self._lines.popleft()
            self.dropped += 1
        self._lines.append(line)
        if not self._running:
            self.flush()
        elif self._parked:
            self._parked = False
            self._waiting.unpark_all()

    def flush(self) -> None:
        """Write what is buffered now, in the calling thread."""
        with self._writing:
            chunk, self._taken = self._taken + self._take(), b""
            self._write(chunk)

    def _take(self) -> bytes:
        chunk = b"".join(self._lines)
        self._lines.clear()
        return chunk

    def _write_taken(self) -> None:
        """In a thread. Whoever flushes meanwhile waits, and finds all lines written."""
        with self._writing:
            chunk, self._taken = self._taken, b""
            self._write(chunk)

    def _write(self, chunk: bytes) -> None:
        try:
            for piece in _pieces(chunk, self._piece):
                self._out.write(piece)
                self._out.flush()
        except (OSError, ValueError):
            self.dropped += chunk.count(b"\n")  # nobody reads the log any more; that must not stop the tunnels

    async def run(self) -> None:
        """Write lines from a thread until cancelled, so that a slow reader of the log holds up no tunnel."""
        self._running = True
        try:
            while True:
                if not self._lines:
                    self._parked = True
                    await self._waiting.park()
                with trio.CancelScope(shield=True):  # lines that were taken are written
                    self._taken += self._take()
                    await trio.to_thread.run_sync(self._write_taken)
                await trio.sleep(_FLUSH_SECONDS)
        finally:
            self._running = self._parked = False
            self.flush()


def _piece_of(out: BinaryIO) -> int:
    """How many bytes are written at once: the workers of a host may share a pipe, which keeps small pieces whole."""
    try:
        regular = stat.S_ISREG(os.fstat(out.fileno()).st_mode)
    except (OSError, ValueError):
        return select.PIPE_BUF
    return _FILE_PIECE if regular else select.PIPE_BUF


def _pieces(chunk: bytes, most: int) -> Iterator[bytes]:
    """Whole lines, together no more than `most` bytes where that can be."""
    start = 0
    while start < len(chunk):
        end = chunk.rfind(b"\n", start, start + most) + 1 or chunk.find(b"\n", start) + 1
        yield chunk[start:end]
        start = end


class _Bridge(logging.Handler):
    """Lines of libraries (trio-websocket) in the same form."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write("library", logger=record.name, message=record.getMessage())


def capture_libraries(log: JsonLog) -> None:
    """Send warnings and errors of the standard logging module into `log`."""
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(log)]
    root.setLevel(logging.WARNING)
