"""The simulated box: its routes, and the server that listens for them on loopback (`docs/box-api.md`)."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from tunnel.agent.demo import websocket
from tunnel.agent.demo.http import Exchange, serve_connection
from tunnel.agent.demo.inference import Inference
from tunnel.agent.demo.models import ModelStore
from tunnel.agent.demo.picture import FRAMES_PER_SECOND, HEIGHT, WIDTH, Camera
from tunnel.agent.demo.usb import real_accelerators, simulated_accelerators

BOUNDARY: Final = "visiona-frame"
MAX_CONNECTIONS: Final = 1024
_NO_STORE: Final = ("Cache-Control: no-store",)

Route = Callable[[Exchange, str], Awaitable[None]]


class Box:
    """One simulated box. `name` is written into the picture; accelerators' serial numbers begin with `serial`."""

    def __init__(self, name: str = "Demo box", serial: str = "DEMO", cameras: int = 2) -> None:
        self.serial = serial
        self.cameras = [Camera(name, number) for number in range(cameras)]
        self.inference = Inference(self.cameras)
        self.models = ModelStore()
        plain = self.inference
        self._routes: tuple[tuple[re.Pattern[str], tuple[str, ...], Route], ...] = tuple(
            (re.compile(pattern + r"\Z"), methods, route)
            for pattern, methods, route in (
                ("/healthz", ("GET", "HEAD"), _alone(self._healthz)),
                ("/api/devices/scan", ("GET", "POST"), _alone(self._scan)),
                ("/api/cameras", ("GET",), _alone(self._list_cameras)),
                ("/api/cameras/([0-9]{1,4})/snapshot", ("GET", "HEAD"), self._snapshot),
                ("/api/cameras/([0-9]{1,4})/stream", ("GET", "HEAD"), self._stream),
                ("/api/inference/models", ("GET",), _alone(plain.models)),
                ("/api/inference/run", ("POST",), _alone(plain.run)),
                ("/api/inference/events", ("GET",), _alone(plain.events)),
                ("/api/inference/echo", (), _alone(plain.echo)),
                ("/api/inference/headers", (), _alone(plain.headers)),
                ("/api/inference/sink", ("POST", "PUT"), _alone(plain.sink)),
                ("/api/inference/bytes/([0-9]+)", ("GET", "HEAD"), plain.bytes),
                ("/api/models", ("GET",), _alone(self.models.list)),
                ("/api/models/([A-Za-z0-9._-]{1,128})", (), self.models.handle),
                ("/ws/inference", ("GET",), _alone(partial(websocket.serve, inference=plain))),
            )
        )

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        for pattern, methods, route in self._routes:
            match = pattern.match(exchange.request.path)
            if match is None:
                continue
            if methods and exchange.request.method not in methods:
                await exchange.send_error(405, "method not allowed", [f"Allow: {', '.join(methods)}"])
            else:
                await route(exchange, match.group(1) if match.groups() else "")
            return
        await exchange.send_error(404, "no such route on this box")

    async def serve(self, host: str = "127.0.0.1", port: int = 0, *, task_status: trio.TaskStatus[int]) -> None:
        """Serve for ever; `started` tells the port. Raises OSError when it cannot be listened on."""
        limit = trio.Semaphore(MAX_CONNECTIONS)

        async def one(stream: trio.SocketStream) -> None:
            async with limit:
                await serve_connection(stream, self.handle)

        listeners = await trio.open_tcp_listeners(port, host=host)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(one, listeners)

    async def _healthz(self, exchange: Exchange) -> None:
        await exchange.send_json(200, {"status": "ok"})

    async def _scan(self, exchange: Exchange) -> None:
        found = real_accelerators() + simulated_accelerators(self.serial)
        await exchange.send_json(200, {"devices": found}, _NO_STORE)

    async def _list_cameras(self, exchange: Exchange) -> None:
        cameras = [
            {
                "id": camera.number,
                "name": f"{camera.name} camera {camera.number}",
                "width": WIDTH,
                "height": HEIGHT,
                "fps": FRAMES_PER_SECOND,
                "stream": f"/api/cameras/{camera.number}/stream",
                "snapshot": f"/api/cameras/{camera.number}/snapshot",
            }
            for camera in self.cameras
        ]
        await exchange.send_json(200, {"cameras": cameras})

    async def _snapshot(self, exchange: Exchange, number: str) -> None:
        if int(number) >= len(self.cameras):
            await exchange.send_error(404, "no such camera")
            return
        await exchange.send(200, "image/jpeg", self.cameras[int(number)].frame(time.time()), _NO_STORE)

    async def _stream(self, exchange: Exchange, number: str) -> None:
        """MJPEG: a new part each time the picture changes, until the client leaves (or `?frames=` are sent)."""
        if int(number) >= len(self.cameras):
            await exchange.send_error(404, "no such camera")
            return
        camera = self.cameras[int(number)]
        wanted = exchange.request.query.get("frames", "")
        left = int(wanted) if wanted.isdigit() and len(wanted) < 9 else -1
        await exchange.start(200, f"multipart/x-mixed-replace; boundary={BOUNDARY}", None, _NO_STORE)
        if exchange.request.method == "HEAD":
            return
        while left != 0:
            # A slow viewer skips pictures: each one is drawn for the moment at which it is sent
            frame = camera.frame(time.time())
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
            await exchange.write(head.encode() + frame + b"\r\n")
            left -= 1
            await trio.sleep(1 / FRAMES_PER_SECOND)
        await exchange.write(f"--{BOUNDARY}--\r\n".encode())
        await exchange.finish()


def _alone(handler: Callable[[Exchange], Awaitable[None]]) -> Route:
    """A handler of a path without a variable part."""

    async def route(exchange: Exchange, _: str) -> None:
        await handler(exchange)

    return route
