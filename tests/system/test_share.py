"""One simulated camera and a hundred viewers, on the whole system: the box's uplink carries one stream."""

import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

VIEWERS = 100
PATIENCE = 60.0
"""For what takes a second or two where nobody else is at work."""


class Viewer:
    """A GET of the stream, whose frames are counted as they pass."""

    def __init__(self, system: Stack, path: str, port: int = 0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port or system.tunnel_port), timeout=20)
        self.sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {system.token}\r\n\r\n".encode()
        )
        self.head = b""
        self.data = bytearray()
        self.bytes = 0
        self.frames = 0
        self.ended = False

    def read(self) -> None:
        data = self.sock.recv(1 << 18)
        self.ended |= not data
        self.bytes += len(data)
        self.data += data
        if not self.head and b"\r\n\r\n" in self.data:
            self.head, _, rest = bytes(self.data).partition(b"\r\n\r\n")
            self.data = bytearray(rest)
        if self.head:
            self.frames += self.data.count(b"Content-Type: image/jpeg")
            del self.data[:-23]  # shorter than what is counted

    def close(self) -> None:
        self.sock.close()


@contextmanager
def viewers(system: Stack, count: int) -> Iterator[list[Viewer]]:
    path = f"/d/{system.device_id()}/api/cameras/0/stream"
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            viewer = Viewer(system, path)
            stack.callback(viewer.close)
            made.append(viewer)
        yield made


def watch(watching: list[Viewer], enough: Callable[[], bool], what: str) -> None:
    """Let all of them read until there is enough."""
    deadline = time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as selector:
        for viewer in watching:
            selector.register(viewer.sock, selectors.EVENT_READ, viewer)
        while not enough():
            assert time.monotonic() < deadline, what
            for key, _ in selector.select(1.0):
                key.data.read()


def moved(watching: list[Viewer], since: list[int]) -> bool:
    """Whether each has seen five pictures more than those."""
    return all(viewer.frames - before >= 5 for viewer, before in zip(watching, since, strict=True))


def metrics(system: Stack, port: int = 0) -> dict[str, float]:
    text = system.call("GET", "/metrics", token="", port=port or system.internal_port).body.decode()
    return {name: float(value) for name, value in re.findall(r"^(visiona_shared_\w+) (\S+)$", text, re.MULTILINE)}


def uplink(system: Stack) -> int:
    """Bytes that came from the box, framing included."""
    return int(sum(session["bytes_in"] for session in system.sessions()))


def test_a_hundred_viewers_and_one_stream_from_the_box(shared_system: Stack) -> None:
    with viewers(shared_system, VIEWERS) as watching:
        watch(watching, lambda: all(viewer.frames for viewer in watching), "everybody sees a picture")
        assert all(viewer.head.startswith(b"HTTP/1.1 200") for viewer in watching)
        assert metrics(shared_system)["visiona_shared_viewers"] == VIEWERS
        frames = [viewer.frames for viewer in watching]
        got, came = sum(viewer.bytes for viewer in watching), uplink(shared_system)
        watch(watching, partial(moved, watching, frames), "the picture moves, for everybody")
        came = uplink(shared_system) - came
        got = sum(viewer.bytes for viewer in watching) - got
        # A hundredth, were nobody so late on a busy machine that pictures are left out for him.
        assert came < 10 * got / VIEWERS, "the uplink carries one stream"
        assert metrics(shared_system)["visiona_shared_pulls"] == 1
        assert not any(viewer.ended for viewer in watching)
    eventually(
        lambda: not metrics(shared_system)["visiona_shared_pulls"], PATIENCE, "the pull ended with its last viewer"
    )


def test_a_stalled_viewer_holds_nobody_up(shared_system: Stack) -> None:
    with viewers(shared_system, 3) as (stalled, *others):
        stalled.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        before = metrics(shared_system)["visiona_shared_units_skipped_total"]
        deadline = time.monotonic() + PATIENCE
        while metrics(shared_system)["visiona_shared_units_skipped_total"] == before:
            assert time.monotonic() < deadline, "no frame was skipped"
            frames = [viewer.frames for viewer in others]
            watch(others, partial(moved, others, frames), "the others go on")
        watch([stalled], lambda: stalled.frames > 0, "it comes back to the picture of now")
