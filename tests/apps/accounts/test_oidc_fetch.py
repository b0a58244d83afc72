"""One exchange with the provider: no redirect, no long answer, no endless one, and no word of it outside our log."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from apps.accounts.oidc.fetch import MAX_BYTES, ProviderError, fetch_json


class Answers(BaseHTTPRequestHandler):
    """What each path answers."""

    protocol_version = "HTTP/1.1"
    over = threading.Event()

    def do_GET(self) -> None:
        path = self.path
        if path == "/redirect":
            self._say(302, b"{}", Location="/good")
        elif path == "/error":
            self._say(500, b"{}")
        elif path == "/list":
            self._say(200, b"[]")
        elif path == "/text":
            self._say(200, b"<html>")
        elif path == "/long":
            self._say(200, b" " * (MAX_BYTES + 1))
        elif path == "/dripping":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):  # the other side leaves
                while not self.over.wait(0.02):
                    self.wfile.write(b" ")
            self.close_connection = True
        else:
            self._say(200, b'{"a": 1}')

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Answers.over.set()
        server.shutdown()
        thread.join(30)


def test_good(url):
    assert fetch_json("GET", url + "/good", seconds=30) == {"a": 1}


@pytest.mark.parametrize("path", ["/redirect", "/error", "/list", "/text", "/long"])
def test_what_is_not_taken(url, path):
    with pytest.raises(ProviderError):
        fetch_json("GET", url + path, seconds=30)


def test_one_that_drips_is_over_in_time(url):
    with pytest.raises(ProviderError, match="no whole answer in time"):
        fetch_json("GET", url + "/dripping", seconds=0.5)


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/", "http://[half/", "nonsense", "file:///etc/passwd"])
def test_nobody_there(target):
    with pytest.raises(ProviderError):
        fetch_json("GET", target, seconds=5)
