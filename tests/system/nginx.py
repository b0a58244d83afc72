"""Debian's nginx with the shipped configuration, in front of processes on this machine; a fixture with all of them."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from tests.apps.proxy.kit import Box, Wire
from tests.conftest import Started
from tests.system.stack import Stack, eventually, run_stack
from tests.tls import make_authority

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


def tls_listen(folder: Path, port: str) -> str:
    """The shipped TLS configuration, listening at `port`, with a certificate of its own that lies in `folder`."""
    make_authority(folder)
    text = (SHIPPED / "tls.conf.example").read_text()
    leaf = f"{folder}/leaf.pem"  # which holds the key too
    own = {"listen 8443 ": f"listen {port} ", "/etc/nginx/tls/fullchain.pem": leaf, "/etc/nginx/tls/privkey.pem": leaf}
    for shipped, here in own.items():
        assert shipped in text
        text = text.replace(shipped, here)
    return text


@contextmanager
def running(folder: Path, port: int, *, api: int, tunnels: list[int], tls: bool = False) -> Iterator[Nginx]:
    """nginx on `port` of this machine, until the end of the block."""
    listen = f"listen 127.0.0.1:{port} default_server;\n"
    if tls:
        listen = tls_listen(folder, f"127.0.0.1:{port}")
    config = configure(folder, listen=listen, api=api, tunnels=tunnels)
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


@dataclass(frozen=True, slots=True)
class Site:
    """The system behind its one origin: a demo box and a scripted one, both connected through nginx."""

    stack: Stack
    nginx: Nginx
    box: Box
    demo_device: str
    device: str

    def wire(self) -> Wire:
        return Wire(self.nginx.port)

    def head(self, method: str, path: str, *fields: str, token: str | None = None) -> bytes:
        """A request head with the demo user's token (`""`: none)."""
        credential = self.stack.token if token is None else token
        lines = [f"{method} {path} HTTP/1.1", "Host: visiona.example"]
        lines += [f"Authorization: Bearer {credential}"] if credential else []
        return "\r\n".join([*lines, *fields, "", ""]).encode()

    def prefixes(self) -> list[str]:
        """The two ways to the scripted box: the front end's own URL, and that of the public lane."""
        return [f"/api/devices/{self.device}/proxy", f"/d/{self.device}"]


def online(stack: Stack) -> dict[str, str]:
    """Name → id of the devices that are connected."""
    devices = stack.call("GET", "/api/pairing/status").data["devices"]
    return {one["name"]: one["device_id"] for one in devices if one["connected"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Site]:
    need_nginx()
    folder = tmp_path_factory.mktemp("nginx")
    settings = {"VISIONA_TRUSTED_PROXIES": "127.0.0.1", "VISIONA_MODEL_MAX_SIZE_MB": "65"}
    with ExitStack() as held:
        ports = (free_port(), free_port(), free_port())
        port = free_port()
        settings["VISIONA_PUBLIC_URL"] = settings["VISIONA_TUNNEL_PUBLIC_URL"] = f"http://127.0.0.1:{port}"
        stack = held.enter_context(run_stack(folder / "var", ports, settings))
        (folder / "nginx").mkdir()
        nginx = held.enter_context(running(folder / "nginx", port, api=ports[0], tunnels=[ports[1]]))
        stack.start(plans.tunnel(stack.plan))
        stack.start(plans.api(stack.plan))
        stack.log_in()
        box = Box()
        held.callback(box.close)
        for name, what in (("demo", ["demo"]), ("scripted", ["run", "--local", f"127.0.0.1:{box.port}"])):
            made = stack.call("POST", "/api/pairing/token", {"name": name}, port=port)
            assert made.status == 201, made.body
            argv = [sys.executable, "-m", "tunnel.agent", *what, "--url", f"ws://127.0.0.1:{port}"]
            argv += ["--credentials", str(folder / f"{name}.json"), "--pairing-token", made.data["token"]]
            log = folder / f"{name}.log"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    argv, cwd=plans.ROOT, env=dict(stack.plan.environ), stdout=out, stderr=out, start_new_session=True
                )
            agent = Started(name, process, log)
            held.callback(agent.stop)
        devices = eventually(lambda: len(online(stack)) == 2 and online(stack), 40, "both boxes are online")
        yield Site(stack, nginx, box, devices["demo"], devices["scripted"])
