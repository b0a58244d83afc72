"""The demo box over real sockets: what `docs/box-api.md` promises, and what an HTTP client may expect of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket

from tunnel.agent.demo.box import Box
from tunnel.agent.demo.inference import BLOCK
from tunnel.agent.demo.usb import real_accelerators


@asynccontextmanager
async def box() -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        served = Box("Test box", "SN-1")
        port = await nursery.start(lambda task_status: served.serve(task_status=task_status))
        with trio.fail_after(30):
            yield port
        nursery.cancel_scope.cancel()


class Client:
    """A bare HTTP/1.1 client that shows everything."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def _more(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError
        self.buffer += data

    async def head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self.buffer:
            await self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        return int(first.split()[1]), {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}

    async def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._more()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def chunk(self) -> bytes:
        while b"\r\n" not in self.buffer:
            await self._more()
        size, _, self.buffer = self.buffer.partition(b"\r\n")
        data = await self.exactly(int(size, 16) + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            found = b""
            while piece := await self.chunk():
                found += piece
            return found
        return await self.exactly(int(headers.get("content-length", "0")))

    async def call(
        self, method: str, target: str, body: bytes = b"", *headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        lines = [f"{method} {target} HTTP/1.1", "Host: box", *headers]
        if body or method in ("PUT", "POST"):
            lines.append(f"Content-Length: {len(body)}")
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
        status, received = await self.head()
        return status, received, b"" if method == "HEAD" else await self.body(received)

    async def json(self, method: str, target: str, body: bytes = b"", *headers: str) -> Any:
        status, _, answer = await self.call(method, target, body, *headers)
        assert status == 200, answer
        return json.loads(answer)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    async with box() as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield Client(stream)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_scan(method: str) -> None:
    async with client() as c:
        answer = await c.json(method, "/api/devices/scan")
        fake = [device for device in answer["devices"] if device["serial"].startswith("SN-1-")]
        assert len(fake) == 2
        for device in answer["devices"]:
            assert set(device) == {"serial", "chip", "usb_id", "firmware", "status"}
            assert device["usb_id"].startswith("3231:")


def test_real_usb_devices(tmp_path: Path) -> None:
    def plug(name: str, **files: str) -> None:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content + "\n")

    plug("1-1", idVendor="3231", idProduct="0100", bcdDevice="0220", serial="0x1A2B")
    plug("1-2", idVendor="1d6b", idProduct="0002", serial="hub")
    plug("2-1", idVendor="3231", idProduct="9999")
    plug("usb1")
    assert real_accelerators(tmp_path) == [
        {"serial": "0x1A2B", "chip": "KL520", "usb_id": "3231:0100", "firmware": "2.20", "status": "ready"},
        {"serial": "usb-2-1", "chip": "unknown", "usb_id": "3231:9999", "firmware": "", "status": "ready"},
    ]
    assert real_accelerators(tmp_path / "missing") == []


async def test_cameras() -> None:
    async with client() as c:
        cameras = (await c.json("GET", "/api/cameras"))["cameras"]
        assert [camera["id"] for camera in cameras] == [0, 1]
        status, headers, picture = await c.call("GET", cameras[1]["snapshot"])
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert picture.startswith(b"\xff\xd8\xff")
        assert picture.endswith(b"\xff\xd9")
        status, headers, _ = await c.call("HEAD", "/api/cameras/0/snapshot")
        assert status == 200
        assert int(headers["content-length"]) > 1000
        for missing in ("/api/cameras/2/snapshot", "/api/cameras/9999/stream", "/api/cameras/x/snapshot"):
            assert (await c.call("GET", missing))[0] == 404


async def test_the_picture_moves() -> None:
    async with client() as c:
        await c.stream.send_all(b"GET /api/cameras/0/stream?frames=3 HTTP/1.1\r\nHost: box\r\n\r\n")
        status, headers = await c.head()
        assert status == 200
        kind, _, boundary = headers["content-type"].partition("; boundary=")
        assert kind == "multipart/x-mixed-replace"
        body = await c.body(headers)
        parts = body.split(f"--{boundary}\r\n".encode())[1:]
        frames = []
        for part in parts:
            head, _, rest = part.partition(b"\r\n\r\n")
            length = int(head.rsplit(b":", 1)[1])
            assert b"Content-Type: image/jpeg" in head
            frames.append(rest[:length])
        assert len(set(frames)) == 3
        assert body.endswith(f"--{boundary}--\r\n".encode())


async def test_inference() -> None:
    async with client() as c:
        models = (await c.json("GET", "/api/inference/models"))["models"]
        asked = json.dumps({"model": models[1]["id"], "camera": 1}).encode()
        answer = await c.json("POST", "/api/inference/run", asked, "Content-Type: application/json")
        assert (answer["model"], answer["camera"]) == (models[1]["id"], 1)
        assert 0 < answer["latency_ms"] < 100
        for found in answer["results"]:
            assert 0 < found["confidence"] <= 1
            assert len(found["box"]) == 4
        assert (await c.json("POST", "/api/inference/run", b"\xff\xd8jpeg"))["input_bytes"] == 6


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"model": "x"}', 404), (b'{"camera": 9}', 404), (b'{"camera": "0"}', 404)],
)
async def test_bad_inference(body: bytes, status: int) -> None:
    async with client() as c:
        answer = await c.call("POST", "/api/inference/run", body, "Content-Type: application/json")
        assert answer[0] == status
        assert json.loads(answer[2])["error"]["status"] == status


async def test_events() -> None:
    async with client() as c:
        await c.stream.send_all(b"GET /api/inference/events?count=2 HTTP/1.1\r\nHost: box\r\n\r\n")
        status, headers = await c.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        events = (await c.body(headers)).decode().strip().split("\n\n")
        assert [event.split("\n")[0] for event in events] == ["id: 0", "id: 1"]
        assert "results" in json.loads(events[0].split("data: ")[1])


async def test_keep_alive_and_what_a_route_refuses() -> None:
    async with client() as c:
        for _ in range(3):
            assert (await c.call("GET", "/healthz"))[0] == 200
        status, headers, _ = await c.call("DELETE", "/api/devices/scan")
        assert (status, headers["allow"]) == (405, "GET, POST")
        assert (await c.call("GET", "/nope"))[0] == 404
        assert (await c.call("POST", "/nope", b"x" * 1000))[0] == 404
        assert (await c.call("GET", "/healthz"))[0] == 200, "the body nobody wanted was in the way"


async def test_pipelined_requests() -> None:
    async with client() as c:
        await c.stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: box\r\n\r\n" * 3)
        for _ in range(3):
            status, headers = await c.head()
            assert (status, json.loads(await c.body(headers))) == (200, {"status": "ok"})


async def test_a_large_unwanted_body_ends_the_connection() -> None:
    async with client() as c, trio.open_nursery() as nursery:

        async def upload() -> None:
            try:
                await c.stream.send_all(b"POST /nope HTTP/1.1\r\nHost: b\r\nContent-Length: 50000000\r\n\r\n")
                while True:
                    await c.stream.send_all(bytes(65536))
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(upload)
        assert (await c.head())[0] == 404


async def test_expect_continue() -> None:
    async with client() as c:
        head = b"PUT /api/inference/sink HTTP/1.1\r\nHost: b\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        await c.stream.send_all(head)
        assert (await c.head())[0] == 100
        await c.stream.send_all(b"hello")
        status, headers = await c.head()
        assert status == 200
        assert json.loads(await c.body(headers))["sha256"] == hashlib.sha256(b"hello").hexdigest()
        await c.stream.send_all(head.replace(b"/api/inference/sink", b"/nope"))
        status, headers = await c.head()
        assert (status, headers["connection"]) == (404, "close")


async def test_chunked_bodies_both_ways() -> None:
    async with client() as c:
        await c.stream.send_all(b"POST /api/inference/echo HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n")
        await c.stream.send_all(b"5\r\nfirst\r\n")
        status, headers = await c.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await c.chunk() == b"first", "an echo must not wait for the whole body"
        await c.stream.send_all(b"6\r\nsecond\r\n0\r\n\r\n")
        assert await c.chunk() == b"second"
        assert await c.chunk() == b""
        status, headers, body = await c.call("POST", "/api/inference/echo", b"plain", "Content-Type: text/x")
        assert (headers["content-length"], headers["content-type"], body) == ("5", "text/x", b"plain")


async def test_http_1_0_ends_by_closing() -> None:
    async with client() as c:
        await c.stream.send_all(b"GET /api/inference/bytes/70000?chunked=1 HTTP/1.0\r\n\r\n")
        _, headers = await c.head()
        assert "transfer-encoding" not in headers
        assert headers["connection"] == "close"
        body = c.buffer
        while data := await c.stream.receive_some():
            body += data
        assert len(body) == 70000


async def test_bytes_are_what_they_should_be() -> None:
    async with client() as c:
        for count in (0, 1, len(BLOCK), len(BLOCK) + 1, 1_000_000):
            expected = (BLOCK * (count // len(BLOCK) + 1))[:count]
            for query in ("", "?chunked=1"):
                assert (await c.call("GET", f"/api/inference/bytes/{count}{query}"))[2] == expected
        status, headers, _ = await c.call("HEAD", "/api/inference/bytes/123")
        assert (status, headers["content-length"]) == (200, "123")
        assert (await c.call("GET", "/api/inference/bytes/99999999999999"))[0] == 400


async def test_what_the_box_was_asked() -> None:
    async with client() as c:
        answer = await c.json("GET", "/api/inference/headers?a=%2F&a=2", b"", "X-Thing: one", "X-Thing: two")
        assert answer["target"] == "/api/inference/headers?a=%2F&a=2"
        assert [value for name, value in answer["headers"] if name == "x-thing"] == ["one", "two"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40000 + b"\r\n\r\n", 431),
        (b"POST /api/inference/sink HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request(request_bytes: bytes, status: int) -> None:
    async with client() as c:
        await c.stream.send_all(request_bytes)
        assert (await c.head())[0] == status
        while await c.stream.receive_some():
            pass


async def test_a_model_is_uploaded_in_two_pieces() -> None:
    async with client() as c:
        status, headers, _ = await c.call("HEAD", "/api/models/m-1")
        assert (status, headers["upload-offset"]) == (404, "0")
        status, headers, _ = await c.call("PUT", "/api/models/m-1", b"hello", "Content-Range: bytes 0-4/10")
        assert (status, headers["upload-offset"]) == (200, "5")
        status, headers, _ = await c.call("HEAD", "/api/models/m-1")
        assert (headers["upload-offset"], headers["upload-length"]) == ("5", "10")
        status, headers, _ = await c.call("PUT", "/api/models/m-1", b"x", "Content-Range: bytes 7-7/10")
        assert (status, headers["upload-offset"]) == (409, "5")
        status, _, body = await c.call("PUT", "/api/models/m-1", b"world", "Content-Range: bytes 5-9/10")
        assert status == 201
        assert json.loads(body)["sha256"] == hashlib.sha256(b"helloworld").hexdigest()
        assert (await c.json("GET", "/api/models"))["models"][0]["status"] == "ready"
        assert (await c.call("PUT", "/api/models/m-2", b"whole"))[0] == 201
        assert (await c.json("DELETE", "/api/models/m-1"))["id"] == "m-1"
        assert (await c.call("GET", "/api/models/m-1"))[0] == 404
        assert (await c.call("POST", "/api/models/m-2"))[0] == 405


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ("bytes 0-4", b"hello"),
        ("bytes 4-0/10", b"hello"),
        ("bytes 0-9/5", b"hello"),
        ("bytes 0-9/10", b"short"),
        ("bytes 0-1/10", b"longer"),
    ],
)
async def test_bad_ranges(value: str, body: bytes) -> None:
    async with client() as c:
        assert (await c.call("PUT", "/api/models/m", body, f"Content-Range: {value}"))[0] == 400


async def test_an_upload_that_breaks_off_goes_on_where_it_ended() -> None:
    async with box() as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(
                b"PUT /api/models/m HTTP/1.1\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\nhal"
            )
            await trio.sleep(0.05)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            c = Client(stream)
            while (answer := await c.call("HEAD", "/api/models/m"))[0] != 200 or answer[1]["upload-offset"] != "3":
                await trio.sleep(0.01)
            assert (await c.call("PUT", "/api/models/m", b"fanhour", "Content-Range: bytes 3-9/10"))[0] == 201


async def test_websocket() -> None:
    async with box() as port:
        url = f"ws://127.0.0.1:{port}/ws/inference"
        async with trio_websocket.open_websocket_url(url, subprotocols=["one", "two"]) as ws:
            assert ws.subprotocol == "one"
            await ws.send_message(json.dumps({"camera": 1}))
            assert json.loads(await ws.get_message())["camera"] == 1
            await ws.send_message(b"\xff\xd8picture")
            assert json.loads(await ws.get_message())["input_bytes"] == 9
            for bad, status in (("{", 400), ("[]", 400), ('{"model": "x"}', 404)):
                await ws.send_message(bad)
                assert json.loads(await ws.get_message())["error"]["status"] == status
        async with trio_websocket.open_websocket_url(url + "?mode=echo") as ws:
            for message in ("text", b"\x00binary", "x" * 100_000):
                await ws.send_message(message)
                assert await ws.get_message() == message


async def test_a_websocket_route_without_an_upgrade() -> None:
    async with client() as c:
        assert (await c.call("GET", "/ws/inference"))[0] == 426
