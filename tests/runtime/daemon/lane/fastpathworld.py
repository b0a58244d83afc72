"""A lane whose requests were met before, and how many of them were served the short way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.runtime.daemon.daemonworld import World
from tests.runtime.daemon.lane.laneworld import DEVICE, Handler, Visitor, Wire, box, fast_world

GET = f"GET /d/{DEVICE}/x?a=%2Fb"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nhi"


def quick(w: World) -> int:
    """How many exchanges were served the short way, to their end."""
    return w.daemon.parts.lane._tally.ordinary


async def met(visitor: Visitor, line: str = GET, *fields: str, body: bytes = b"") -> None:
    """Ask until the request is one that was met before: the connection's first, the first look, the second."""
    for _ in range(3):
        assert (await visitor.ask(line, *fields, body=body)).status < 500


@asynccontextmanager
async def met_world(handler: Handler, line: str = GET, **settings: object) -> AsyncIterator[tuple[World, Visitor]]:
    async with fast_world(**settings) as w:
        await box(w, handler)
        async with Visitor(w) as visitor:
            await met(visitor, line)
            yield w, visitor


def scripted(*answers: bytes | None) -> Handler:
    """Answers so, in order of all requests of all streams, the last ones for ever; None: the stream is reset."""
    left = list(answers)

    async def answer(wire: Wire) -> None:
        while await wire.head() is not None:
            said = left.pop(0) if len(left) > 1 else left[0]
            if said is None:
                wire.stream.reset()
                return
            await wire.send(said)

    return answer


async def silent(wire: Wire, answers: int, gone: list[str]) -> None:
    for _ in range(answers):
        await wire.head()
        await wire.send(ANSWER)
    await wire.head()
    gone.append("waits")
    gone[-1] = await wire.gone()
