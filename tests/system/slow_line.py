"""A box behind a slow line: a network namespace of its own, whose only way out is shaped by `tc` in both directions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BOX = """
import http.server, sys

class Box(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        size = int(self.path.rpartition("/")[2] or 2)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for at in range(0, size, 65536):
            self.wfile.write(bytes(min(65536, size - at)))

    def do_POST(self):
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 4096)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Box).serve_forever()
"""
"""Serves GET /anything/SIZE and takes what is posted."""


@dataclass(frozen=True, slots=True)
class Line:
    """One namespace. `outside` is the address of this machine as seen from in there."""

    name: str
    outside: str

    def start(self, arguments: list[str], log: Path, **environ: str) -> subprocess.Popen[bytes]:
        """A Python program behind the line."""
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *arguments],
                stdout=file, stderr=file, env=os.environ | environ,
            )  # fmt: skip

    def shape(self, *discipline: str) -> None:
        """Both directions by this queueing discipline (`man tc-tbf`)."""
        _run("tc", "qdisc", "replace", "dev", f"{self.name}o", "root", *discipline)
        _run("ip", "netns", "exec", self.name, "tc", "qdisc", "replace", "dev", f"{self.name}i", "root", *discipline)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def slow_line() -> Iterator[Line]:
    """A line without a limit yet. Skips the test where it cannot be made; fails it then in CI (`CI=true`)."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    name = f"vis{os.getpid() % 100_000}"
    net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    line = Line(name, f"{net}.1")
    inside = ("ip", "netns", "exec", name, "ip")
    try:
        if missing or os.geteuid():
            raise OSError(f"a network namespace needs root, ip and tc; missing: {missing or 'root'}")
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", f"{name}o", "type", "veth", "peer", "name", f"{name}i", "netns", name)
        _run("ip", "address", "add", f"{net}.1/24", "dev", f"{name}o")
        _run("ip", "link", "set", f"{name}o", "up")
        _run(*inside, "address", "add", f"{net}.2/24", "dev", f"{name}i")
        _run(*inside, "link", "set", f"{name}i", "up")
        _run(*inside, "link", "set", "lo", "up")
    except OSError as error:
        _remove(name)
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    try:
        yield line
    finally:
        _remove(name)


def _remove(name: str) -> None:
    for command in (["ip", "link", "delete", f"{name}o"], ["ip", "netns", "delete", name]):
        if shutil.which("ip") is not None:
            subprocess.run(command, capture_output=True, timeout=20, check=False)
