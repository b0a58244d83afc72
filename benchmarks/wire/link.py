"""A TCP relay that stands for a long or a narrow line: ``python -m benchmarks.wire.link --to PORT``.

Each direction is delayed by the same time and, if asked for, let through at a rate only. Its first line on standard
output is ``{"port": …}``; then it carries any number of connections until it is killed.
"""

import argparse
import json
import math
from collections import deque
from functools import partial

import trio

from benchmarks.wire.sockets import bound_buffers

_READ = 256 * 1024
_NARROW_READ = 4096  # a piece is let through whole, so it must be short beside what is measured


class Line:
    """When what comes in now goes out: `delay` seconds later, at most `rate` bytes a second. Pure.

    A bucket of `burst` bytes evens out that nobody is woken at the very moment.
    """

    def __init__(self, delay: float = 0.0, rate: float = math.inf, burst: int = _NARROW_READ) -> None:
        self._delay, self._rate, self._burst = delay, rate, burst
        self._free = -math.inf  # when the last byte will have passed

    def due(self, size: int, now: float) -> float:
        """When `size` bytes that came in at `now` are through, on the same clock."""
        self._free = max(self._free, now - self._burst / self._rate) + size / self._rate
        return max(self._free, now) + self._delay


class Held:
    """Bytes on their way, at most `bound` of them: who brings more waits."""

    def __init__(self, bound: int) -> None:
        self._bound, self._size = bound, 0
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._room, self._filled = trio.lowlevel.ParkingLot(), trio.lowlevel.ParkingLot()

    async def put(self, due: float, data: bytes) -> None:
        """Keep `data` until it is taken; b"" is the end."""
        self._pieces.append((due, data))
        self._size += len(data)
        self._filled.unpark()
        while self._size >= self._bound:
            await self._room.park()

    async def take(self) -> tuple[float, bytes]:
        """The oldest, whether it is due or not: it counts as held until `gone`."""
        while not self._pieces:
            await self._filled.park()
        return self._pieces.popleft()

    def gone(self, size: int) -> None:
        """So many bytes were handed on."""
        self._size -= size
        self._room.unpark()


async def _in(source: trio.SocketStream, line: Line, held: Held, read: int) -> None:
    while True:
        data = await source.receive_some(read)
        now = trio.current_time()
        await held.put(line.due(len(data), now), bytes(data))
        if not data:
            return


async def _out(held: Held, target: trio.SocketStream) -> None:
    while True:
        due, data = await held.take()
        await trio.sleep_until(due)
        if not data:
            await target.send_eof()
            return
        await target.send_all(data)
        held.gone(len(data))


async def _connected(arguments: argparse.Namespace) -> trio.socket.SocketType:
    sock = trio.socket.socket()
    bound_buffers(sock, arguments.buffer)
    try:
        await sock.connect(("127.0.0.1", arguments.to))
    except BaseException:
        sock.close()
        raise
    return sock


async def _carry(arguments: argparse.Namespace, near: trio.SocketStream) -> None:
    try:
        async with near, trio.SocketStream(await _connected(arguments)) as far:  # which sets TCP_NODELAY
            read = _READ if arguments.rate == math.inf else _NARROW_READ
            async with trio.open_nursery() as nursery:
                for source, target in ((near, far), (far, near)):
                    held = Held(arguments.bound)
                    nursery.start_soon(_in, source, Line(arguments.delay, arguments.rate), held, read)
                    nursery.start_soon(_out, held, target)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        pass  # one side broke off: leaving the block has closed the other


async def _main(arguments: argparse.Namespace) -> None:
    sock = trio.socket.socket()
    bound_buffers(sock, arguments.buffer)  # what is accepted has them from its first packet on
    await sock.bind(("127.0.0.1", 0))
    sock.listen()
    print(json.dumps({"port": sock.getsockname()[1]}), flush=True)
    await trio.serve_listeners(partial(_carry, arguments), [trio.SocketListener(sock)])


def main() -> None:
    """Carry until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=int, required=True, help="port of this machine that is connected to")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each direction")
    parser.add_argument("--rate", type=float, default=math.inf, help="bytes a second, each direction")
    parser.add_argument("--buffer", type=int, default=0, help="bytes of each socket buffer; 0: the system's")
    parser.add_argument("--bound", type=int, default=64 * 1024 * 1024, help="most bytes held, each direction")
    trio.run(_main, parser.parse_args())


if __name__ == "__main__":
    main()
