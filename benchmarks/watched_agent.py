"""Our agent with its number of Trio tasks told on a loopback port: ``python -m benchmarks.watched_agent PORT``.

Settings come from ``VISIONA_AGENT_*``. Whoever connects is sent one line, the number, and hung up on.
"""

import os
import sys
from functools import partial

import trio

from tunnel.agent import logs
from tunnel.agent.runner import Agent
from tunnel.agent.settings import load


async def _tell(stream: trio.SocketStream) -> None:
    async with stream:
        try:
            await stream.send_all(b"%d\n" % trio.lowlevel.current_statistics().tasks_living)
        except trio.BrokenResourceError:
            return


async def _main(port: int) -> int:
    told, _ = load({}, os.environ, None)
    logs.setup(told.log_level, "json")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, _tell, port, host="127.0.0.1"))
        code = await Agent(told, os.environ).run()
        nursery.cancel_scope.cancel()
    return code


if __name__ == "__main__":
    sys.exit(trio.run(_main, int(sys.argv[1])))
