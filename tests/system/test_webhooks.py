"""Webhooks of a whole system: a real box, a real worker, a real receiver; and the worker killed in the middle."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.webhooks.signing import verify
from cloud.supervisor import plan as plans
from tests.apps.webhooks.receiver import Receiver, receiving
from tests.system.stack import Stack, eventually, run_stack

pytestmark = pytest.mark.system
SWEEP = """
import datetime as dt
from django.utils import timezone
from apps.webhooks import delivery
print(delivery.sweep(now=timezone.now() + dt.timedelta(minutes=2)))
"""
"""The sweep of every minute, as if it were two minutes later."""


@pytest.fixture
def system(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Stack]:
    """All but the box, which is to be seen pairing."""
    settings = {"VISIONA_WEBHOOK_ALLOW_PRIVATE": "true", "VISIONA_WORKER_METRICS_PORT": str(free_port())}
    with run_stack(tmp_path / "var", (free_port(), free_port(), free_port()), settings) as stack:
        stack.start(plans.tunnel(stack.plan))
        stack.start(plans.api(stack.plan))
        stack.start(plans.worker(stack.plan))
        stack.log_in()
        yield stack


def got(receiver: Receiver, event: str) -> list[dict]:
    """What has come of an event so far."""
    return [told for told in (json.loads(body) for _, _, body in list(receiver.got)) if told["event"] == event]


def awaited(receiver: Receiver, event: str, count: int = 1) -> dict:
    """The event's last telling, once there were so many."""
    eventually(lambda: len(got(receiver, event)) >= count, 60, f"{event} arrives")
    return got(receiver, event)[-1]


@pytest.mark.timeout(300)
def test_the_life_of_a_box_and_a_worker_killed_in_between(system: Stack) -> None:
    with receiving() as receiver:
        events = ["device.online", "device.offline", "device.paired", "device.unpaired"]
        made = system.call("POST", "/api/webhooks", {"url": receiver.url, "events": events})
        assert made.status == 201, made.body
        hook, secret = f"/api/webhooks/{made.data['id']}", made.data["secret"]

        system.start_agent()
        device = system.device_id()
        assert awaited(receiver, "device.paired")["data"]["device_id"] == device
        assert awaited(receiver, "device.online")["data"]["serial"] == system.serial
        for _, headers, body in receiver.got:
            assert verify(headers["X-VisionA-Signature"], [secret], body, int(time.time()))

        receiver.hold.clear()
        assert system.call("POST", f"{hook}/ping").status == 201
        first = awaited(receiver, "ping")
        figures = f"http://127.0.0.1:{system.plan.settings['WORKER_METRICS_PORT']}/metrics"
        with urllib.request.urlopen(figures, timeout=10) as answer:  # it answers while a receiver holds a place
            assert b'visiona_api_places{owners="user",pool="webhooks"} 1.0' in answer.read()
        system.kill("worker")
        receiver.hold.set()
        log = system.call("GET", f"{hook}/deliveries?event=ping").data[0]
        assert (log["status"], log["attempts"]) == ("pending", 0)
        system.start(plans.worker(system.plan))
        swept = subprocess.run(
            [sys.executable, "manage.py", "shell", "-v", "0", "-c", SWEEP],
            cwd=plans.ROOT, env={**system.plan.environ}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert swept.stdout.strip().endswith("1"), swept.stderr
        assert awaited(receiver, "ping", 2) == first
        eventually(
            lambda: system.call("GET", f"{hook}/deliveries?event=ping").data[0]["status"] == "delivered",
            30,
            "the log says that it was delivered",
        )

        system.stop("agent")
        assert awaited(receiver, "device.offline")["data"]["device_id"] == device
        assert system.call("DELETE", f"/api/devices/{device}").status == 200
        assert awaited(receiver, "device.unpaired")["data"]["device_id"] == device
        for name in ("api", "worker"):
            assert secret not in system.log(name)
