"""The mixed traffic of a soak: threads that ask over both lanes until told to stop, and count what became of it."""

import http.client
import itertools
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self

from benchmarks.build import program
from benchmarks.processes import BenchError
from benchmarks.system import Agent, System
from cloud.supervisor import plan as plans

UPLOAD: Final = bytes(1_000_000)
VIEWERS: Final = 8
SOCKETS: Final = 8
SOCKET_SECONDS: Final = 20.0
FLEET: Final = 5
FLEET_SECONDS: Final = 20.0
RECONNECT_SECONDS: Final = 90.0  # over the stable minute after which an agent forgets its backoff
_PATIENCE: Final = 15.0


class Traffic:
    """Runs within a `with` block. `counts` tells each kind's outcomes: a status, or how it broke off."""

    def __init__(self, system: System, device: str, upstream: int) -> None:
        self.counts: Counter[str] = Counter()
        self._system, self._device, self._upstream = system, device, upstream
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._fleet: Agent | None = None
        self._lanes = (
            (system.tunnel_port, f"/d/{device}"),
            (system.port, f"/api/devices/{device}/proxy"),
        )
        jobs: list[Callable[[], None]] = [self._scans, self._uploads, self._small, self._sockets]
        jobs += [self._reconnects, self._come_and_go]
        jobs += [partial(self._views, number) for number in range(VIEWERS)]
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(3 * _PATIENCE)
        if self._fleet is not None:
            self._fleet.running.stop()

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _ask(self, kind: str, link: http.client.HTTPConnection, method: str, path: str, body: bytes = b"") -> None:
        """One request, counted; the connection is opened anew where it broke."""
        try:
            link.request(method, path, body=body or None, headers={"Authorization": f"Bearer {self._system.token}"})
            answer = link.getresponse()
            while answer.read(65536):
                pass
            self._count(f"{kind}: {answer.status}")
        except (OSError, http.client.HTTPException) as error:
            self._count(f"{kind}: {type(error).__name__}")
            link.close()

    def _link(self, port: int) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)

    # --- kinds ---
    def _scans(self) -> None:
        link = self._link(self._system.port)
        while not self._over.wait(1.0):
            self._ask("scan", link, "POST", f"/api/devices/scan?device_id={self._device}")

    def _uploads(self) -> None:
        for port, prefix in itertools.cycle(self._lanes):
            link = self._link(port)
            self._ask("upload", link, "POST", prefix + "/sink", UPLOAD)
            link.close()
            if self._over.wait(1.0):
                return

    def _small(self) -> None:
        """On kept connections, each of which is left after a while."""
        while not self._over.is_set():
            for port, prefix in self._lanes:
                link = self._link(port)
                for _ in range(20):
                    self._ask("small", link, "GET", prefix + "/small")
                    if self._over.wait(0.05):
                        break
                link.close()

    def _views(self, number: int) -> None:
        """Half of them on the fast lane, two a camera, so that they share; the others on the DRF lane."""
        port, prefix = self._lanes[number % 2]
        path = f"{prefix}/stream?camera={number // 4}"
        while not self._over.is_set():
            link = self._link(port)
            try:
                link.request("GET", path, headers={"Authorization": f"Bearer {self._system.token}"})
                answer = link.getresponse()
                self._count(f"view: {answer.status}")
                while answer.read1(65536) and not self._over.is_set():
                    pass
            except (OSError, http.client.HTTPException) as error:
                self._count(f"view: {type(error).__name__}")
            finally:
                link.close()
            self._over.wait(0.5)

    def _sockets(self) -> None:
        words = [str(program("sockets")), "-n", str(SOCKETS)]
        for port in (self._system.port, self._system.tunnel_port):
            words += ["-url", f"ws://127.0.0.1:{port}/ws/echo"]
        words += ["-H", f"Authorization: Bearer {self._system.token}", "-H", f"X-Device-Id: {self._device}"]
        while not self._over.wait(0.5):
            with subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as held:
                assert held.stdin is not None
                assert held.stdout is not None
                try:
                    if held.stdout.readline() != "open\n":
                        self._count("sockets: not opened")
                        continue
                    self._over.wait(SOCKET_SECONDS)
                    held.stdin.write("\n\n")
                    held.stdin.flush()
                    said = json.loads(held.stdout.readline())
                    self._count("sockets: cut" if said["failures"] else "sockets: held")
                except (OSError, ValueError):
                    self._count("sockets: died")
                finally:
                    held.kill()

    # --- agents that come and go ---
    def _reconnects(self) -> None:
        """The box's own tunnel is closed as a daemon that restarts would; its agent comes back."""
        secret = self._system.plan.settings["INTERNAL_SECRET"][0]
        fields = {"Authorization": f"Bearer {secret}"}
        while not self._over.wait(RECONNECT_SECONDS):
            link = self._link(int(self._system.plan.settings["PROXY_INTERNAL_PORT"]))
            try:
                link.request("GET", "/internal/sessions", headers=fields)
                listed = json.loads(link.getresponse().read())["data"]
                link.close()
                for session in listed:
                    if session["device_id"] == self._device:
                        link.request("DELETE", f"/internal/session/{session['session']}?code=1012", headers=fields)
                        self._count(f"reconnect: {link.getresponse().status}")
                        link.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._count(f"reconnect: {type(error).__name__}")
            finally:
                link.close()

    def _come_and_go(self) -> None:
        """A process of five tunnels that is killed and started again."""
        tokens = [token for _, token in self._system.devices(FLEET, "soak-fleet")]
        while not self._over.is_set():
            self._fleet = self._system.go_agent(tokens, local=self._upstream)
            try:
                self._fleet.wait_online(30)
                self._count("fleet: online")
            except BenchError:
                self._count("fleet: not online")
            self._over.wait(FLEET_SECONDS)
            self._fleet.running.stop(9)


def start_worker(system: System) -> int:
    """The worker for background jobs; its process id."""
    return system.start(plans.worker(system.plan)).pid


def settled(system: System, device: str) -> bool:
    """Whether the box answers on the fast lane."""
    deadline = time.monotonic() + 30
    side = system.fast(device, 0)
    while system.answers(side) != 200:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
