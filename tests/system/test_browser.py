"""The console, the admin and the API docs as a person sees them, in headless Chromium."""

import base64
import hmac
import io
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import zxingcpp
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from cloud.environment import database_address
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.browser, pytest.mark.timeout(300)]

CHROMIUM = next(filter(None, (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))), "")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
expect.set_options(timeout=30_000)  # of every file that imports a fixture of this one
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


def log_in(page: Page, email: str, password: str, where: str = "/") -> None:
    page.goto(where)
    page.get_by_label("E-mail").fill(email)
    page.locator("#password").fill(password)
    page.locator("#login").get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#who")).to_have_text(email)


def test_console_shows_a_box(page: Page, shared_system: Stack) -> None:
    """Log in, see the box online, the picture moving, a snapshot, a scan, an inference."""
    log_in(page, shared_system.email, shared_system.password)
    expect(page.locator("#box-status")).to_have_text("online")
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#frames")).to_contain_text("frames")
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
    log_in(page, shared_system.email, shared_system.password)
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
    log_in(page, shared_system.email, shared_system.password)
    page.locator("#pair-name").fill("Front door")
    page.get_by_role("button", name="Make a pairing line").click()
    expect(page.locator("#pair-command")).to_contain_text("vAc_")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    text = page.evaluate("document.documentElement.outerHTML")
    assert "vAc_" not in text
    assert shared_system.email not in text
    log_in(page, shared_system.email, shared_system.password)
    expect(page.locator("#paired")).to_be_hidden()
    assert page.locator("#pair-name").input_value() == ""


def test_console_is_empty_before_the_next_page_is_there(page: Page, shared_system: Stack) -> None:
    """A browser that keeps the page for its way back keeps nothing of whoever has left."""
    log_in(page, shared_system.email, shared_system.password)
    page.evaluate(
        "addEventListener('pagehide', () => sessionStorage.setItem('kept', document.documentElement.outerHTML))"
    )
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    kept = page.evaluate("sessionStorage.getItem('kept')")
    assert "<head>" in kept
    assert shared_system.email not in kept


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
    expect(page.get_by_text("/api/pairing/token", exact=True).first).to_be_visible()
    picture(page, "api-docs")
    assert hosts <= {"127.0.0.1", ""}


def test_admin_lists_and_kicks(page: Page, shared_system: Stack) -> None:
    """An operator, as the demo user is, logs in, sees the box online, kicks its tunnel; the agent is back by itself."""
    page.goto("/admin/")
    page.locator("input[name=username]").fill(shared_system.email)
    page.locator("input[name=password]").fill(shared_system.password)
    page.locator("[type=submit]").first.click()
    page.wait_for_url("**/admin/")
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
    page.goto("/admin/audit/auditevent/")
    expect(page.locator("table tbody tr").first).to_be_visible()
    picture(page, "admin-audit")


# --- the second factor ------------------------------------------------------------------------------------------------
@pytest.fixture
def person(browser: Browser, shared_system: Stack) -> Iterator[Page]:
    """A page at the name that passkeys are of, with an authenticator that agrees; refusals may stand on its console."""
    context = browser.new_context(base_url=f"http://localhost:{shared_system.port}")
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    developer = context.new_cdp_session(page)
    developer.send("WebAuthn.enable")
    options = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True}
    options |= {"isUserVerified": True, "automaticPresenceSimulation": True}
    developer.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    yield page
    context.close()
    assert wrong == []


def staff(system: Stack, email: str) -> tuple[str, str]:
    """An operator of one test's own: a test that fails half-way leaves its factor to nobody. E-mail and password."""
    password = "a-long-enough-pass"
    system.register(email, password)
    with psycopg.connect(**database_address(system.plan.settings)) as db:
        db.execute("UPDATE users SET is_staff = true, is_superuser = true WHERE email = %s", [email])
    return email, password


def press(page: Page, button: str, said: str) -> None:
    """A button of the console's page, whose fields are filled in."""
    page.get_by_role("button", name=button, exact=True).click()
    expect(page.locator("#notice")).to_contain_text(said)


def with_passkey(page: Page, email: str, password: str) -> None:
    """A login of the console, whose second step is a passkey."""
    page.get_by_label("E-mail").fill(email)
    page.locator("#password").fill(password)
    page.locator("#login").get_by_role("button", name="Log in", exact=True).click()
    page.get_by_role("button", name="Use a passkey").click()
    expect(page.locator("#who")).to_have_text(email)


def test_a_passkey_is_registered_and_logs_in(person: Page, shared_system: Stack) -> None:
    """In the console; then the console's login and the admin's ask for it; then it is removed there."""
    email, password = staff(shared_system, "first@example.com")
    log_in(person, email, password)
    person.get_by_role("link", name="Security").click()
    expect(person.locator("#factor-state")).to_contain_text("Off")
    person.locator("#factor-password").fill("not-the-password")
    press(person, "Add a passkey", "INVALID_CREDENTIALS")  # and nobody is logged out by it
    person.locator("#factor-password").fill(password)
    person.locator("#passkey-name").fill("Laptop")
    press(person, "Add a passkey", "The passkey is on.")
    expect(person.locator("#codes-list")).to_contain_text("-")
    expect(person.locator("#passkeys li")).to_contain_text("Laptop")
    picture(person, "console-security")

    person.get_by_role("button", name="Log out").click()
    with_passkey(person, email, password)

    person.goto("/admin/")
    person.locator("input[name=username]").fill(email)
    person.locator("input[name=password]").fill(password)
    person.locator("[type=submit]").first.click()
    person.wait_for_url("**/admin/second-step/")
    person.get_by_role("button", name="Log in").click()  # no code typed
    person.wait_for_url("**/admin/")
    person.goto("/admin/second-factor/")
    person.locator("input[name=password]").fill(password)
    person.get_by_role("button", name="Remove “Laptop”").click()
    expect(person.locator("#secret")).to_be_visible()  # nothing is on


def test_staff_make_a_passkey_in_the_admin(person: Page, shared_system: Stack) -> None:
    """And remove it in the console."""
    email, password = staff(shared_system, "third@example.com")
    person.goto("/admin/")
    person.locator("input[name=username]").fill(email)
    person.locator("input[name=password]").fill(password)
    person.locator("[type=submit]").first.click()
    person.wait_for_url("**/admin/")
    person.goto("/admin/second-factor/")
    person.locator("input[name=password]").fill(password)
    person.get_by_role("button", name="Add a passkey").click()
    person.get_by_role("button", name="Make a passkey").click()
    expect(person.locator("#recovery-codes li")).to_have_count(10)
    person.goto("/#security")
    with_passkey(person, email, password)
    person.locator("#factor-password").fill(password)
    person.get_by_role("button", name="Remove Passkey of").click()  # it signs its own end
    expect(person.locator("#notice")).to_contain_text("The passkey is removed.")
    expect(person.locator("#factor-state")).to_contain_text("Off")


def test_an_authenticator_is_added_in_the_console(person: Page, shared_system: Stack) -> None:
    """By what its QR code holds; its recovery codes are renewed, and it is switched off by one."""
    email, password = "second@example.com", "a-long-enough-pass"
    shared_system.register(email, password)
    held: list[Route] = []
    person.route("**/api/auth/second-factor", lambda route: route.fallback() if held else held.append(route))
    log_in(person, email, password, "/#security")
    eventually(lambda: person.wait_for_timeout(50) or held, 10, "the state is asked for")
    expect(person.get_by_role("link", name="Back to your boxes")).to_be_visible()
    expect(person.locator("#factor-password")).to_be_hidden()  # nothing can be asked for before the state is known
    held[0].fallback()
    person.locator("#factor-password").fill(password)
    press(person, "Add an authenticator app", "Scan the code")
    shown = image_of(person, "#offer-qr").resize((800, 800), Image.Resampling.NEAREST)
    (code,) = zxingcpp.read_barcodes(shown)
    assert person.locator("#offer-secret").inner_text() in code.text
    forgets_an_offer(person)
    person.locator("#factor-password").fill(password)
    press(person, "Add an authenticator app", "Scan the code")
    shown = image_of(person, "#offer-qr").resize((800, 800), Image.Resampling.NEAREST)
    (code,) = zxingcpp.read_barcodes(shown)
    person.locator("#offer-code").fill(code_for(code.text))
    press(person, "Switch on", "The authenticator app is on.")
    first = person.locator("#codes-list").inner_text().split()
    person.locator("#factor-password").fill(password)
    person.locator("#factor-code").fill(first[1])
    press(person, "Add a passkey", "The passkey is on.")
    assert person.locator("#codes-list").inner_text().split() == first  # still to be kept
    person.locator("#factor-password").fill(password)
    person.locator("#factor-code").fill(first[0])
    press(person, "New recovery codes", "void")
    second = person.locator("#codes-list").inner_text().split()
    assert not {*first} & {*second}
    person.get_by_role("button", name="I have kept them").click()
    expect(person.locator("#codes")).to_be_hidden()
    person.locator("#factor-password").fill(password)
    person.locator("#factor-code").fill(second[0])
    press(person, "Switch off", "Your second factor is off.")


def forgets_an_offer(page: Page) -> None:
    """Left and opened again, the page shows no secret that was not used, nor what was typed."""
    page.locator("#factor-password").fill("half of it")
    page.get_by_role("link", name="Back to your boxes").click()
    expect(page.locator("#no-devices")).to_be_visible()
    assert page.locator("#offer-secret").text_content() == ""
    page.get_by_role("link", name="Security").click()
    expect(page.locator("#factor-state")).to_be_visible()
    expect(page.locator("#offer")).to_be_hidden()
    expect(page.locator("#factor-password")).to_have_value("")


def code_for(uri: str) -> str:
    """What an authenticator shows that has read this (RFC 6238)."""
    key = base64.b32decode(parse_qs(urlsplit(uri).query)["secret"][0])
    digest = hmac.digest(key, int(time.time() // 30).to_bytes(8, "big"), "sha1")
    at = digest[-1] & 15
    return f"{(int.from_bytes(digest[at : at + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"
