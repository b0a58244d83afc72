"""What people do with the system, end to end, on the real parts."""

import json
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.system.stack import Stack, eventually
from tunnel.contract import error_envelope

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def curl(line: str) -> str:
    """What a pasted line prints."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def test_the_first_calls_of_a_newcomer(shared_system: Stack) -> None:
    """Log in, status and scan, as the lines that `make dev` prints have them."""
    base = f"http://localhost:{shared_system.port}"
    body = json.dumps({"email": shared_system.email, "password": shared_system.password})
    login = json.loads(curl(f"curl -s {base}/api/auth/login -H 'Content-Type: application/json' -d '{body}'"))
    token = login["data"]["access_token"]
    assert re.fullmatch(r"vAu_[0-9a-f]{32}", token)
    status = json.loads(curl(f"curl -s -H 'Authorization: Bearer {token}' {base}/api/pairing/status"))
    assert status["data"]["connected"] is True
    found = json.loads(curl(f"curl -s -H 'Authorization: Bearer {token}' {base}/api/devices/scan"))
    assert {"serial", "chip", "usb_id", "firmware", "status"} <= set(found["devices"][0])
    device = shared_system.device_id()
    stored = shared_system.call("GET", f"/api/devices/{device}/accelerators").data
    assert {one["serial"] for one in stored} == {one["serial"] for one in found["devices"]}


def test_a_picture_and_a_moving_one(shared_system: Stack) -> None:
    """A snapshot is a JPEG; of the stream two frames differ; the first comes at once."""
    shot = shared_system.call("GET", "/api/cameras/0/snapshot")
    assert shot.headers["Content-Type"] == "image/jpeg"
    assert shot.body.startswith(b"\xff\xd8")
    assert shot.body.endswith(b"\xff\xd9")
    with shared_system.stream("/api/cameras/0/stream") as stream:
        held = stream.read()
        while held.count(b"\xff\xd9") < 3:
            held += stream.read()
    pictures = [part.split(b"\xff\xd8", 1)[1] for part in held.split(b"\xff\xd9")[:3]]
    assert len(set(pictures)) > 1


def test_one_request_id_on_all_hops(shared_system: Stack) -> None:
    """The id that the client sent stands in the logs of daemon and agent, for each request of a reused stream."""
    mine = [f"req_of-this.test_{number}" for number in range(3)]
    for one in mine:
        path = "/api/inference/headers?needle-in-query=1"
        answer = shared_system.call("GET", path, headers={"X-Request-ID": one})
        assert answer.headers["X-Request-ID"] == one
        assert answer.status in (200, 404)

    def told(name: str, event: str) -> list[str]:
        ids = [line.get("request_id") for line in shared_system.lines(name) if line.get("event") == event]
        return [one for one in ids if one in mine]

    for name, event in (("tunnel", "forward"), ("agent", "request")):
        eventually(lambda name=name, event=event: sorted(told(name, event)) == mine, 30, f"{mine} in {name}'s log")
    for event in ("request", "forward"):
        assert told("api", event) == [], "one line an exchange, at its end, by who carries it"


def test_no_secret_in_any_log(shared_system: Stack) -> None:
    """Neither tokens nor query strings nor passwords are logged by any process."""
    shared_system.call("GET", "/api/devices?search=needle-in-query")
    made = shared_system.call("POST", "/api/pairing/token", {}).data["token"]
    shared_system.call("GET", f"/tunnel/connect?token={made}", token="", port=shared_system.tunnel_port)
    time.sleep(0.5)
    logs = {name: shared_system.log(name) for name in ("api", "tunnel", "worker", "agent")}
    for name, text in logs.items():
        assert "needle-in-query" not in text, name
        assert not re.search(r"vA[ucs]_[0-9a-f]{32}", text), name
        assert shared_system.password not in text, name


def test_constant_ids_and_an_unknown_route(shared_system: Stack) -> None:
    """A mistake anywhere is answered in the envelope, with the id that was sent."""
    answer = shared_system.call("GET", "/api/nothing/here", headers={"X-Request-ID": "abc"})
    assert answer.status == 404
    expected = error_envelope("NOT_FOUND", answer.json["error"]["message"], "abc")
    assert answer.json == expected


def dial(port: int, token: str, headers: dict[str, str]) -> tuple[socket.socket, int, str]:
    """One agent's handshake: the socket, the status, the device's id (empty when refused)."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    lines = {"Host": "localhost", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    lines |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Authorization": f"Bearer {token}", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    sock.sendall(f"GET /tunnel/connect HTTP/1.1\r\n{head}\r\n".encode())
    held = b""
    while b"\r\n\r\n" not in held:
        held += sock.recv(4096)
    device = re.search(rb"(?i)x-visiona-device-id: ([0-9a-f-]+)", held)
    return sock, int(held.split()[1]), device.group(1).decode() if device else ""


@pytest.mark.parametrize("named", [True, False])
def test_fifty_agents_race_for_one_token(shared_system: Stack, named: bool) -> None:
    """Agents that name themselves: one wins. Plain ones become the same device, and the newest stays."""
    token = shared_system.call("POST", "/api/pairing/token", {"name": "raced for"}).data["token"]

    def one(number: int) -> tuple[socket.socket, int, str]:
        name = {"X-VisionA-Agent": "test/1", "X-VisionA-Instance": f"instance-{number}"} if named else {}
        return dial(shared_system.tunnel_port, token, name)

    with ExitStack() as open_sockets:
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(one, range(50)))
        for sock, _, _ in answers:
            open_sockets.enter_context(sock)
        check_the_race(shared_system, answers, named)


def check_the_race(system: Stack, answers: list[tuple[socket.socket, int, str]], named: bool) -> None:
    won = [device for _, status, device in answers if status == 101]
    assert len(won) == (1 if named else 50)
    assert len(set(won)) == 1
    assert {status for _, status, _ in answers} <= {101, 401}

    def live() -> int:
        return sum(one["device_id"] == won[0] for one in system.sessions())

    eventually(lambda: live() == 1, 5, "one tunnel of the device is left")
    system.call("DELETE", f"/api/devices/{won[0]}")


def test_unpair_during_a_stream(system: Stack) -> None:
    """The stream is reset, the tunnel closed and the token dead, in under 2 s on a machine that is not busy."""
    device = system.device_id()
    with system.stream("/api/cameras/0/stream") as stream:
        assert stream.read()
        assert system.call("DELETE", f"/api/devices/{device}").status == 200
        assert stream.ends(30) == "cut"
    eventually(lambda: not system.sessions(), 10, "the tunnel is closed")
    assert system.processes["agent"].wait(30) == 3  # refused with 401: the agent says so and ends
    assert "4401" in system.log("agent")
    assert system.call("GET", f"/api/devices/{device}").status == 404


def test_a_stream_runs_on_beside_small_calls(shared_system: Stack) -> None:
    """Eight pictures move while sixteen clients call: each is served, none is cut."""

    def watch(_: int) -> int:
        got = 0
        until = time.monotonic() + 3
        with shared_system.stream("/api/cameras/0/stream") as stream:
            while time.monotonic() < until:
                got += len(stream.read())
        return got

    def call(_: int) -> int:
        return shared_system.call("GET", "/api/devices/scan").status

    with ThreadPoolExecutor(24) as pool:
        streams = [pool.submit(watch, n) for n in range(8)]
        statuses = list(pool.map(call, range(64)))
    assert statuses == [200] * 64
    assert all(stream.result() > 10_000 for stream in streams)


def test_a_websocket_to_the_box(shared_system: Stack) -> None:
    """A plain GET is told to upgrade; a real client talks to the box, with its login, and with a ticket."""
    assert shared_system.call("GET", "/ws/inference").code == "UPGRADE_REQUIRED"
    url = f"ws://127.0.0.1:{shared_system.port}/ws/inference?mode=echo"
    body = {"device_id": shared_system.device_id(), "path_prefix": "/ws"}
    ticket = shared_system.call("POST", "/api/ws/ticket", body).data["ticket"]
    for address, headers in (
        (url, {"Authorization": f"Bearer {shared_system.token}"}),
        (f"{url}&ticket={ticket}", {}),
    ):
        with connect(address, additional_headers=headers, max_size=1 << 24) as socket:
            for message in ("hello", "x" * 4_000_000, b"\x00" * 4_000_000, ""):
                socket.send(message)
                assert socket.recv() == message
    with pytest.raises(InvalidStatus) as spent:
        connect(f"{url}&ticket={ticket}").close()
    assert spent.value.response.status_code == 401
