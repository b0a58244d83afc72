"""One camera behind one daemon, viewers at two of them, on the whole system: the box's uplink carries one stream."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from tests.system.many import agent, daemon, end, holds
from tests.system.stack import Stack, eventually, run_stack
from tests.system.test_share import PATIENCE, Viewer, metrics, moved, watch

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def two(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[tuple[Stack, int, int]]:
    """The API and two daemons: the stack's own has no box; and the public and internal port of the one that has."""
    public, internal = free_port(), free_port()
    with run_stack(tmp_path / "var", (free_port(), free_port(), free_port()), {}) as stack:
        stack.start(plans.tunnel(stack.plan))
        stack.start(plans.api(stack.plan))
        stack.start(daemon(stack, "holder", public, internal))
        stack.log_in()
        box = agent(stack, "one", f"ws://127.0.0.1:{public}", tmp_path)
        try:
            eventually(lambda: holds(stack, internal), PATIENCE, "the box is there")
            yield stack, public, internal
        finally:
            end(box)


@contextmanager
def viewers(stack: Stack, device: str, ports: list[int]) -> Iterator[list[Viewer]]:
    """A viewer at each of these public ports."""
    with ExitStack() as held:
        made = []
        for port in ports:
            made.append(Viewer(stack, f"/d/{device}/api/cameras/0/stream", port))
            held.callback(made[-1].close)
        yield made


def test_the_viewers_at_two_daemons_share_one_pull(two: tuple[Stack, int, int]) -> None:
    stack, public, internal = two
    secret = stack.plan.settings["INTERNAL_SECRET"][0]
    (device,) = holds(stack, internal)
    other = stack.tunnel_port
    at_holder = partial(metrics, stack, internal)
    with viewers(stack, device, [other]) as first, ExitStack() as held:
        watch(first, lambda: first[0].frames > 0, "the first one sees a picture")
        watching = first + held.enter_context(viewers(stack, device, [public, *[other, public] * 4]))
        watch(watching, lambda: all(viewer.frames for viewer in watching), "everybody sees a picture")
        (session,) = stack.call("GET", "/internal/sessions", token=secret, port=internal).data
        assert session["streams"] == 1, "at the box"
        assert all(viewer.head.startswith(b"HTTP/1.1 200") for viewer in watching)
        assert at_holder()["visiona_shared_pulls_total"] == 1
        assert at_holder()["visiona_shared_viewers"] == 6, "its own five, and the other daemon"
        assert metrics(stack)["visiona_shared_viewers"] == 5
        frames = [viewer.frames for viewer in watching]
        watch(watching, partial(moved, watching, frames), "the picture moves, for everybody")

        stalled, *others = watching
        stalled.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        before = metrics(stack)["visiona_shared_units_skipped_total"]
        deadline = time.monotonic() + PATIENCE
        while metrics(stack)["visiona_shared_units_skipped_total"] == before:
            assert time.monotonic() < deadline, "no frame was skipped"
            frames = [viewer.frames for viewer in others]
            watch(others, partial(moved, others, frames), "the others go on, at both daemons")

        for viewer in watching[1::2]:
            viewer.close()
        eventually(lambda: at_holder()["visiona_shared_viewers"] == 1, PATIENCE, "only the other daemon watches")
        rest = watching[2::2]
        watch(rest, partial(moved, rest, [viewer.frames for viewer in rest]), "those at the other daemon go on")
        assert at_holder()["visiona_shared_pulls_total"] == 1
    eventually(lambda: not at_holder()["visiona_shared_pulls"], PATIENCE, "the pull ended with the last viewer")
