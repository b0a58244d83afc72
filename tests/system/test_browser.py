"""The console, the admin and the API docs as a person sees them, in headless Chromium."""

import io
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zxingcpp
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.browser, pytest.mark.timeout(300)]

CHROMIUM = next(filter(None, (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))), "")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Where to put the pictures for the documents; empty: nowhere.
PICTURES = os.environ.get("SCREENSHOTS", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium, and CI must have one")
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, shared_system: Stack) -> Iterator[Page]:
    """A page that fails the test on an error in its scripts or on its console."""
    context = browser.new_context(
        base_url=f"http://127.0.0.1:{shared_system.port}", viewport={"width": 1280, "height": 860}
    )
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert wrong == []


def picture(page: Page, name: str, *, whole: bool = False) -> None:
    """What stands in the window, or the whole page from its top."""
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=whole)


def image_of(page: Page, selector: str) -> Image.Image:
    return Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")


def log_in(page: Page, system: Stack) -> None:
    page.goto("/")
    page.get_by_label("E-mail").fill(system.email)
    page.get_by_label("Password").fill(system.password)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#who")).to_have_text(system.email)


def test_console_shows_a_box(page: Page, shared_system: Stack) -> None:
    """Log in, see the box online, the picture moving, a snapshot, a scan, an inference."""
    log_in(page, shared_system)
    expect(page.locator("#box-status")).to_have_text("online")
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#frames")).to_contain_text("frames", timeout=10_000)
    first = image_of(page, ".screen")

    def moved() -> bool:
        return ImageChops.difference(first, image_of(page, ".screen")).getbbox() is not None

    eventually(moved, 10, "the picture moves")
    page.get_by_role("button", name="Scan").click()
    expect(page.locator("#accelerators tbody tr").first).to_be_visible()
    page.get_by_role("button", name="Run once").click()
    expect(page.locator("#inference-answer")).to_contain_text("{")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#echo-answer")).to_contain_text("20 messages there and back")
    picture(page, "console", whole=True)
    page.get_by_role("button", name="Snapshot").click()
    expect(page.locator("#play")).to_have_text("Play")
    expect(page.locator("#notice")).to_be_hidden()


def test_console_shows_a_pairing_line(page: Page, shared_system: Stack) -> None:
    """The line is shown, and its QR code holds the same text."""
    log_in(page, shared_system)
    page.locator("#pair-name").fill("Front door")
    page.get_by_role("button", name="Make a pairing line").click()
    expect(page.locator("#pair-command")).to_contain_text("visiona-agent run --url")
    line = page.locator("#pair-command").inner_text()
    assert "vAc_" in line
    code = image_of(page, "#pair-qr").resize((800, 800), Image.Resampling.NEAREST)
    codes = zxingcpp.read_barcodes(code)
    assert [one.text for one in codes] == [line]
    picture(page, "console-pairing")


def test_console_keeps_nothing_of_whoever_logs_out(page: Page, shared_system: Stack) -> None:
    """The next one at this tab sees no pairing line, no QR code, no box, no picture."""
    log_in(page, shared_system)
    page.locator("#pair-name").fill("Front door")
    page.get_by_role("button", name="Make a pairing line").click()
    expect(page.locator("#pair-command")).to_contain_text("vAc_")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    text = page.evaluate("document.documentElement.outerHTML")
    assert "vAc_" not in text
    assert shared_system.email not in text
    log_in(page, shared_system)
    expect(page.locator("#paired")).to_be_hidden()
    assert page.locator("#pair-name").input_value() == ""


def test_console_opens_with_a_fragment_that_is_none(page: Page) -> None:
    page.goto("/#%")
    expect(page.get_by_role("button", name="Log in")).to_be_visible()


def test_console_says_what_went_wrong(page: Page, shared_system: Stack, browser: Browser) -> None:
    """A wrong password is told in words; a narrow screen is usable."""
    narrow = browser.new_context(
        base_url=f"http://127.0.0.1:{shared_system.port}", viewport={"width": 390, "height": 844}
    )
    phone = narrow.new_page()
    phone.goto("/")
    phone.get_by_label("E-mail").fill("nobody@example.com")
    phone.get_by_label("Password").fill("wrong-password")
    phone.get_by_role("button", name="Log in").click()
    expect(phone.locator("#notice")).to_contain_text("INVALID_CREDENTIALS")
    expect(phone.locator("#notice")).to_have_class("notice")  # the colour of what went wrong
    assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture(phone, "console-phone")
    narrow.close()


def test_api_docs(page: Page) -> None:
    """Swagger UI comes from us alone and lists the routes."""
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
    page.goto("/api/docs/")
    expect(page.get_by_text("/api/pairing/token", exact=True).first).to_be_visible(timeout=20_000)
    picture(page, "api-docs")
    assert hosts <= {"127.0.0.1", ""}


def staff(system: Stack) -> tuple[str, str]:
    """The operator of this system: the demo user, whom the seed makes staff in development."""
    return system.email, system.password


def test_admin_lists_and_kicks(page: Page, shared_system: Stack) -> None:
    """An operator logs in, sees the box online, kicks its tunnel; the agent is back by itself."""
    email, password = staff(shared_system)
    page.goto("/admin/")
    page.locator("input[name=username]").fill(email)
    page.locator("input[name=password]").fill(password)
    page.locator("[type=submit]").first.click()
    page.goto("/admin/devices/device/")
    row = page.locator("#result_list tbody tr, table tbody tr").filter(has_text="online").first
    expect(row).to_be_visible()
    picture(page, "admin-devices")
    before = {one["session"] for one in shared_system.sessions()}
    row.locator("input[type=checkbox]").first.check()
    page.locator("select[name=action]").select_option("kick_selected")
    page.locator("button[name=index], button:has-text('Run')").first.click()

    def replaced() -> bool:
        now = {one["session"] for one in shared_system.sessions()}
        return bool(now) and not now & before

    eventually(replaced, 45, "the tunnel was closed and the agent is back")
    time.sleep(0.2)
    page.goto("/admin/audit/auditevent/")
    expect(page.locator("table tbody tr").first).to_be_visible()
    picture(page, "admin-audit")
