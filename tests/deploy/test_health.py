"""The containers' health check."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.health import healthy

ROOT = Path(__file__).resolve().parents[2]


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.removeprefix("/")))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "wanted"), [(200, True), (503, False), (404, False), (204, False)])
def test_only_200_is_healthy(server: str, status: int, wanted: bool) -> None:
    assert healthy(f"{server}/{status}") is wanted


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/healthz", "file:///etc/passwd", ""])
def test_no_answer_and_no_http_is_not(url: str) -> None:
    assert healthy(url) is False


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_command_tells_by_its_status(server: str, status: int, code: int) -> None:
    command = [sys.executable, "-m", "cloud.health", f"{server}/{status}"]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=20).returncode == code
