"""The console's button for the identity provider, in headless Chromium, with node's oidc-provider behind it."""

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from cloud.supervisor import plan as plans
from tests.apps.accounts.provider_kit import node_provider
from tests.apps.accounts.provider_site import CLIENT_ID, CLIENT_SECRET
from tests.system.stack import Stack, run_stack
from tests.system.test_browser import browser

__all__ = ["browser"]  # a fixture
BUTTON = "Log in with your organisation"
pytestmark = [pytest.mark.system, pytest.mark.browser, pytest.mark.interop, pytest.mark.timeout(1000)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    """The API alone, and the provider that it names: nobody here needs a box."""
    folder = tmp_path_factory.mktemp("provider")
    ports = (free_port(), free_port(), free_port())
    back = f"http://localhost:{ports[0]}/api/auth/oidc/callback"
    with node_provider(back, folder / "log") as issuer:
        settings = {
            "VISIONA_OIDC_ISSUER": issuer,
            "VISIONA_OIDC_CLIENT_ID": CLIENT_ID,
            "VISIONA_OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "VISIONA_OIDC_TIMEOUT_SECONDS": "20",  # on a busy machine
        }
        with run_stack(folder / "var", ports, settings) as stack:
            stack.start(plans.api(stack.plan))
            yield stack


@pytest.fixture
def fresh(browser: Browser, system: Stack) -> Iterator[BrowserContext]:
    """A browser that was nowhere yet. The provider's pages ask for fonts elsewhere: nothing leaves this machine."""
    context = browser.new_context(base_url=f"http://localhost:{system.port}")
    context.route(re.compile(r"^https?://(?!localhost[:/]|127\.0\.0\.1[:/])"), lambda route: route.abort())
    wrong: list[str] = []
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    yield context
    context.close()
    assert wrong == []


def go_there(page: Page) -> None:
    """To the provider's own page, by the button."""
    page.goto("/")
    page.get_by_role("link", name=BUTTON).click()
    expect(page.locator("input[name=login]")).to_be_visible()


def log_in_there(page: Page, who: str, *, asked: bool = True) -> None:
    """On the provider's pages: who one is, and that we may know, which it asks once."""
    page.locator("input[name=login]").fill(who)
    page.locator("input[name=password]").fill("x")
    page.locator("button[type=submit]").click()
    if asked:
        page.get_by_role("button", name="Continue").click()


def test_there_and_back(fresh: BrowserContext) -> None:
    page = fresh.new_page()
    go_there(page)
    assert urlsplit(page.url).hostname == "127.0.0.1"
    log_in_there(page, "pat")
    expect(page.locator("#who")).to_have_text("pat@example.com")
    assert "#" not in page.url  # the code does not stay in the history
    page.reload()
    expect(page.locator("#who")).to_have_text("pat@example.com")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("link", name=BUTTON)).to_be_visible()


def test_who_gives_up_there_is_told(fresh: BrowserContext) -> None:
    page = fresh.new_page()
    go_there(page)
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator("#notice")).to_have_text("The login was refused at the identity provider.")
    expect(page.get_by_role("button", name="Log in", exact=True)).to_be_visible()
    assert "#" not in page.url


def test_the_providers_error_is_told_with_its_word(fresh: BrowserContext) -> None:
    """Asked to log in nobody whom it would have to ask (`prompt=none`), it says so."""

    def ask_silently(route: Route) -> None:
        answer = route.fetch(max_redirects=0)
        route.fulfill(
            response=answer, headers={**answer.headers, "location": answer.headers["location"] + "&prompt=none"}
        )

    page = fresh.new_page()
    page.route("**/api/auth/oidc/login?*", ask_silently)
    page.goto("/")
    page.get_by_role("link", name=BUTTON).click()
    expect(page.locator("#notice")).to_contain_text("(login_required)")
    expect(page.locator("#notice")).to_contain_text("The identity provider says that something is wrong.")


def test_what_a_link_says_is_text_at_most(fresh: BrowserContext) -> None:
    """A fragment can be anybody's: unasked for nothing is shown, and never is it markup."""
    said = "/#error=PROVIDER_ERROR&reason=%3Cimg%20src%3Dx%20onerror%3D%22window.bad%3D1%22%3E"
    page = fresh.new_page()
    page.goto(said)
    expect(page.get_by_role("link", name=BUTTON)).to_be_visible()  # by the script, once it has looked at the fragment
    expect(page.locator("#notice")).to_be_hidden()
    page.evaluate("sessionStorage.setItem('visiona.oidc_begun', '1')")
    page.goto("about:blank")
    page.goto(said)
    expect(page.locator("#notice")).to_contain_text('(<img src=x onerror="window.bad=1">)')
    assert page.locator("#notice img").count() == 0
    assert page.evaluate("window.bad") is None


def test_two_tabs_at_once_in_a_fresh_browser(fresh: BrowserContext) -> None:
    """Both begin before either has a cookie: each is answered as a browser that brings none."""
    begun: list[Route] = []

    def without_cookie(route: Route) -> None:
        begun.append(route)
        answer = httpx2.get(route.request.url, timeout=20)
        cookies = "\n".join(answer.headers.get_list("set-cookie"))
        route.fulfill(status=302, headers={"location": answer.headers["location"], "set-cookie": cookies})

    fresh.route("**/api/auth/oidc/login?*", without_cookie)
    tabs = [fresh.new_page(), fresh.new_page()]
    for page in tabs:
        go_there(page)
    assert len(begun) == 2
    log_in_there(tabs[0], "pat")
    expect(tabs[0].locator("#who")).to_have_text("pat@example.com")
    log_in_there(tabs[1], "pat", asked=False)
    expect(tabs[1].locator("#who")).to_have_text("pat@example.com")
