"""The worker's figures for Prometheus, at `GET /metrics` of a port of its own (`VISIONA_WORKER_METRICS_PORT`).

Served by the loop that takes jobs and runs none of them itself, so that jobs that hang do not keep it from answering.
It begins with the first job, some seconds after the start. From another address than loopback it asks for the internal
secret, as the daemon's does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from django.conf import settings
from procrastinate.job_context import JobContext
from procrastinate.middleware import AsyncCallNext
from procrastinate.worker import Worker
from prometheus_client import REGISTRY, Counter, Gauge, generate_latest

from tunnel.contract import ERROR_STATUS, SECURITY_FIELDS, error_envelope, request_id_from, verify_secret

logger = structlog.get_logger(__name__)

RUNS: Final = Counter("visiona_worker_jobs", "Jobs that were run, by their end.", ["task", "outcome"])
RUNNING: Final = Gauge("visiona_worker_jobs_running", "Jobs under way.", ["task"], multiprocess_mode="livesum")
_KIND: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = 5.0
_HEAD_BYTES: Final = 16 * 1024
_TOGETHER: Final = 16
_AGAIN_SECONDS: Final = 30.0
"""After which a port that was taken is tried again: the worker before this one may have had it."""


class Server:
    """The port. `start` it from the loop that is to serve it; it ends with that loop."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, None] = {}  # in the order in which they came
        self._next_at = 0.0

    def __repr__(self) -> str:
        return f"<Server {'serving' if self._server else 'not serving'} open={len(self._open)}>"

    @property
    def port(self) -> int:
        """Where it serves; 0: it does not."""
        return self._server.sockets[0].getsockname()[1] if self._server is not None else 0

    async def start(self, host: str, port: int, secrets: Sequence[str]) -> None:
        """Serve, if it does not yet. A port that cannot be had costs a log line, no job."""
        if self._server is not None or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + _AGAIN_SECONDS

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(reader, writer, secrets)

        try:
            self._server = await asyncio.start_server(serve, host, port, limit=_HEAD_BYTES)
        except OSError as error:
            logger.warning("worker_metrics_not_served", host=host, port=port, error=str(error))

    async def close(self) -> None:
        """Serve no more."""
        serving, self._server = self._server, None
        if serving is not None:
            serving.close()
            await serving.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secrets: Sequence[str]) -> None:
        if len(self._open) >= _TOGETHER:
            self._let_the_oldest_go()
        self._open[writer] = None
        try:
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                # None for a peer that had gone by the time that its connection was accepted.
                peer = writer.get_extra_info("peername") or ("0.0.0.0",)  # noqa: S104 - nobody: it is not loopback
                writer.write(answer(head, str(peer[0]), secrets))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever does not ask within the time, or had to go, is told nothing
        finally:
            self._open.pop(writer, None)
            writer.close()

    def _let_the_oldest_go(self) -> None:
        """Whoever asks at once and takes the answer was here for a moment: a silent crowd keeps none of them out."""
        oldest = next(iter(self._open))
        del self._open[oldest]
        oldest.transport.abort()


def answer(head: bytes, peer: str, secrets: Sequence[str]) -> bytes:
    """The whole answer to a request of which this is the head."""
    line, *lines = head.decode("latin-1").split("\r\n")
    method, _, target = line.partition(" ")
    fields = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    scheme, _, secret = fields.get("authorization", "").partition(" ")
    code = ""
    if target.partition(" ")[0] != "/metrics":
        code = "NOT_FOUND"
    elif not ipaddress.ip_address(peer.partition("%")[0]).is_loopback and not (
        scheme.lower() == "bearer" and verify_secret(secret.strip(), list(secrets))
    ):
        code = "UNAUTHENTICATED"
    elif method not in ("GET", "HEAD"):
        code = "METHOD_NOT_ALLOWED"
    request_id = request_id_from(fields.get("x-request-id"))
    status, body, kind = 200, b"", _KIND
    if code:
        status, kind = ERROR_STATUS[code], "application/json"
        body = orjson.dumps(error_envelope(code, HTTPStatus(status).phrase + ".", request_id))
    else:
        body = generate_latest(REGISTRY)
    told = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        *(f"{name}: {value}" for name, value in SECURITY_FIELDS),
        *(["Allow: GET, HEAD"] if status == 405 else []),
        "Cache-Control: no-store",
        "Connection: close",
    ]
    return "\r\n".join([*told, "", ""]).encode("latin-1") + (b"" if method == "HEAD" else body)


server: Final = Server()


async def counted(call_next: AsyncCallNext, context: JobContext, worker: Worker) -> Any:  # noqa: ARG001 - interface
    """Counts a job, by procrastinate's middleware; serves the figures where a port is set."""
    values = settings.VISIONA
    if values["WORKER_METRICS_PORT"]:
        await server.start(values["INTERNAL_BIND_HOST"], values["WORKER_METRICS_PORT"], values["INTERNAL_SECRET"])
    task = context.job.task_name
    outcome = "failed"
    RUNNING.labels(task).inc()
    try:
        result = await call_next()
        outcome = "done"
        return result
    finally:
        RUNNING.labels(task).dec()
        RUNS.labels(task, outcome).inc()
