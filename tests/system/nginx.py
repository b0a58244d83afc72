"""Debian's nginx with the shipped configuration, in front of processes on this machine."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
BINARY = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running one. `folder` is its prefix and holds its log."""

    port: int
    folder: Path

    def log(self) -> str:
        """All that it wrote: access and errors."""
        return (self.folder / "out.log").read_text()


def need_nginx() -> str:
    """The program; a test without it is skipped, and fails where CI=true."""
    if BINARY is None:
        if os.environ.get("CI") == "true":
            pytest.fail("nginx is not on the PATH (.ci/tools installs it)")
        pytest.skip("nginx is not installed")
    return BINARY


def configure(folder: Path, *, listen: str, api: int, tunnels: list[int]) -> Path:
    """The shipped files with this machine's addresses in those that an operator changes; the main file's path."""
    for path in SHIPPED.glob("*.conf"):
        shutil.copy(path, folder)
    text = (SHIPPED / "upstreams.conf").read_text()
    for shipped, ports in (("api:3721", [api]), ("tunnel:3800", tunnels)):
        line = re.compile(rf"^( +server ){shipped}([ ;].*\n)", re.MULTILINE)
        assert line.search(text)
        text = line.sub(lambda found, ports=ports: "".join(f"{found[1]}127.0.0.1:{p}{found[2]}" for p in ports), text)
    (folder / "upstreams.conf").write_text(text)
    (folder / "listen.conf").write_text(listen)
    return folder / "nginx.conf"


def command(config: Path, *more: str) -> list[str]:
    """The command line, as the configuration's own comment has it."""
    user = " user root;" if os.geteuid() == 0 else ""  # the tests' folders are this user's alone
    return [need_nginx(), "-p", f"{config.parent}/", "-c", str(config), "-g", f"daemon off;{user}", *more]


@contextmanager
def running(folder: Path, port: int, *, api: int, tunnels: list[int]) -> Iterator[Nginx]:
    """nginx on `port` of this machine, until the end of the block."""
    config = configure(folder, listen=f"listen 127.0.0.1:{port} default_server;\n", api=api, tunnels=tunnels)
    with (folder / "out.log").open("wb") as log:
        process = subprocess.Popen(command(config), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while not (folder / "nginx.pid").exists():
                assert process.poll() is None, (folder / "out.log").read_text()
                assert time.monotonic() < deadline, "nginx does not start"
                time.sleep(0.02)
            yield Nginx(port, folder)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
