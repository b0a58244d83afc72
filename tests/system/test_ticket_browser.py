"""A page of another origin uses a box by tickets, in headless Chromium: the picture in an `<img>`, and a WebSocket."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import ImageChops
from playwright.sync_api import Browser

from tests.system.stack import Stack, eventually, run_stack
from tests.system.test_browser import browser as browser
from tests.system.test_browser import image_of

pytestmark = [pytest.mark.system, pytest.mark.browser, pytest.mark.timeout(300)]


PAGE = b"""<!doctype html><title>Another origin</title><img id="picture" alt=""><script>
window.talk = (url) => new Promise((resolve, reject) => {
  const socket = new WebSocket(url);
  let back = 0;
  socket.onerror = () => reject(new Error("error"));
  socket.onclose = (event) => reject(new Error("closed " + event.code));
  socket.onopen = () => { for (let n = 0; n < 1000; n += 1) socket.send("message " + n); };
  socket.onmessage = (event) => {
    if (event.data !== "message " + back) { reject(new Error("not message " + back + ": " + event.data)); return; }
    back += 1;
    if (back === 1000) { socket.onclose = null; socket.close(); resolve(back); }
  };
});
</script>"""


@dataclass(frozen=True, slots=True)
class System:
    """A whole system, a page of an origin that it allows, and one of another.

    Both are one server by names that a browser takes for this machine, and a system in development does not.
    """

    stack: Stack
    allowed: str
    other: str


class Front(BaseHTTPRequestHandler):
    """Serves the page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_args: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[System]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    allowed = f"http://allowed.localhost:{port}"
    settings = {"VISIONA_CORS_ALLOWED_ORIGINS": allowed}
    ports = (free_port(), free_port(), free_port())
    try:
        with run_stack(tmp_path_factory.mktemp("system") / "var", ports, settings) as stack:
            yield System(stack.start_all(), allowed, f"http://other.localhost:{port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ticket(system: Stack, prefix: str) -> str:
    body = {"device_id": system.device_id(), "path_prefix": prefix}
    return str(system.call("POST", "/api/ws/ticket", body).data["ticket"])


def way_url(system: Stack, way: str, path: str) -> str:
    """Where a browser finds `path` of the box on a lane."""
    port = system.port if way == "api" else system.tunnel_port
    if way == "fast" and not path.startswith("/ws/"):
        path = f"/d/{system.device_id()}{path}"
    return f"127.0.0.1:{port}{path}"


WAYS = ["api", "fast"]


@pytest.mark.parametrize("way", WAYS)
def test_another_origin_by_ticket(browser: Browser, system: System, way: str) -> None:
    """A page of an allowed origin shows the moving picture in an `<img>` and exchanges 1 000 messages."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(system.allowed)
    camera = way_url(system.stack, way, "/api/cameras/0/stream")
    page.evaluate(
        "(url) => { document.getElementById('picture').src = url; }",
        f"http://{camera}?ticket={ticket(system.stack, '/api/cameras/0')}",
    )
    eventually(lambda: page.evaluate("document.getElementById('picture').naturalWidth") > 0, 15, "the picture is there")
    first = image_of(page, "#picture")

    def moved() -> bool:
        return ImageChops.difference(first, image_of(page, "#picture")).getbbox() is not None

    eventually(moved, 10, "the picture moves")
    url = f"ws://{way_url(system.stack, way, '/ws/inference')}?mode=echo&ticket={ticket(system.stack, '/ws')}"
    assert page.evaluate("(url) => window.talk(url)", url) == 1000
    context.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_page_that_is_not_allowed(browser: Browser, system: System, way: str) -> None:
    """Its WebSocket is refused, and the ticket is still good for one that is."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(system.other)
    url = f"ws://{way_url(system.stack, way, '/ws/inference')}?mode=echo&ticket={ticket(system.stack, '/ws')}"
    assert page.evaluate("(url) => window.talk(url).catch(() => 'refused')", url) == "refused"
    page.goto(system.allowed)
    assert page.evaluate("(url) => window.talk(url)", url) == 1000
    context.close()
