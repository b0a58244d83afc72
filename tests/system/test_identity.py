"""The links of mails in the console, in headless Chromium, with a real worker that writes the mails."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.system.stack import Stack, eventually
from tests.system.test_browser import browser, page

__all__ = ["browser", "page"]  # fixtures
pytestmark = [pytest.mark.system, pytest.mark.browser, pytest.mark.timeout(300)]


def link(system: Stack, kind: str) -> str:
    """The fragment of the newest link of this kind in the mails that the worker has written."""

    def newest() -> str:
        for path in _newest_first(system.var / "mail"):
            found = re.search(rf"#{kind}=\S+", path.read_text())
            if found:
                return found.group()
        return ""

    found: str = eventually(newest, 60, f"mail with a link to {kind}")
    return found


def _newest_first(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def test_confirm_an_e_mail_and_set_a_new_password(page: Page, shared_system: Stack) -> None:
    page.goto("/")
    page.get_by_label("E-mail").fill("nia@example.com")
    page.get_by_label("Password").fill("a first pass phrase")
    page.get_by_role("button", name="Create an account").click()
    expect(page.locator("#who")).to_have_text("nia@example.com")

    page.goto("about:blank")  # a link is opened from a mail: a change of the fragment alone loads nothing
    page.goto("/" + link(shared_system, "verify"))
    expect(page.locator("#notice")).to_contain_text("nia@example.com is confirmed")
    assert "#" not in page.url  # the token does not stay in the history
    page.get_by_role("button", name="Log out").click()

    page.get_by_label("E-mail").fill("nia@example.com")
    page.get_by_role("button", name="Forgot your password?").click()
    expect(page.locator("#notice")).to_contain_text("a link is on its way")
    page.goto("about:blank")
    page.goto("/" + link(shared_system, "reset"))
    page.get_by_label("New pass phrase").fill("a second pass phrase")
    page.get_by_role("button", name="Set it").click()
    expect(page.locator("#notice")).to_contain_text("Your new password is set")
    expect(page.locator("#notice")).to_have_class("notice good")  # not in the colour of what went wrong
    page.get_by_label("E-mail").fill("nia@example.com")
    page.get_by_label("Password").fill("a second pass phrase")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#who")).to_have_text("nia@example.com")
