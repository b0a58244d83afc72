"""The tour for front-end developers, `docs/examples/tour.js`, pasted into the product's own page."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from cloud.supervisor import plan as plans
from tests.system.stack import Stack, eventually, run_stack
from tests.system.test_browser import browser as browser

pytestmark = [pytest.mark.system, pytest.mark.browser, pytest.mark.timeout(300)]

TOUR = Path(__file__).resolve().parents[2] / "docs" / "examples" / "tour.js"
SIZE = 100 * 2**20


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    """The whole system, without a box: the tour pairs one."""
    with run_stack(tmp_path_factory.mktemp("tour") / "var", (free_port(), free_port(), free_port())) as stack:
        for part in (plans.tunnel, plans.api, plans.worker):
            stack.start(part(stack.plan))
        yield stack


def test_the_tour(cloud: Stack, browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"http://127.0.0.1:{cloud.port}/")
    page.evaluate("window.tourEnd = null")
    page.evaluate(
        TOUR.read_text()
        + f"""
        tour("http://127.0.0.1:{cloud.port}", {{size: {SIZE}}}).then(
            (seen) => {{ window.tourEnd = {{seen}}; }}, (error) => {{ window.tourEnd = {{error: String(error)}}; }});
        null"""
    )

    def command() -> str:
        page.wait_for_timeout(100)  # lets the page's messages in
        return next((line for line in said if line.startswith("visiona-agent run ")), "")

    def over() -> bool:
        page.wait_for_timeout(100)
        return bool(page.evaluate("window.tourEnd !== null"))

    words = eventually(command, 60, "the line for the box").split()
    box = subprocess.Popen(
        [sys.executable, "-m", "tunnel.agent", "demo", *words[2:], "--credentials", str(tmp_path / "credentials.json")],
        env={**cloud.environ, "VISIONA_ENV_STRICT": "false"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(over, 240, "the tour ends")
    finally:
        box.terminate()
        box.wait(20)
    end = page.evaluate("window.tourEnd")
    assert "seen" in end, f"{end}\n{said}"
    seen = end["seen"]
    assert seen["model"]["status"] == "ready"
    assert (seen["deployment"]["status"], seen["deployment"]["bytes_done"]) == ("done", SIZE)
    assert seen["inference"]["results"]
    actions = {event["action"] for event in seen["events"]}
    assert {"device.pair", "model.finalize", "deployment.start", "cluster.create"} <= actions
    assert len([line for line in said if re.search(r"uploaded \d+ %", line)]) >= 3, said
    page.close()
