"""The worker's threads: as many as jobs at once, whatever the machine has."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

from django.conf import settings

from cloud.jobs import JOBS_AT_ONCE, own_threads


def test_jobs_that_hang_take_no_thread_from_the_others() -> None:
    """asyncio's own executor has four threads and one for each core."""
    together = threading.Barrier(JOBS_AT_ONCE, timeout=20)

    async def job() -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, together.wait)

    async def worker() -> list[Any]:
        context, program = cast("Any", None), cast("Any", None)
        return await asyncio.gather(*(own_threads(job, context, program) for _ in range(JOBS_AT_ONCE)))

    assert sorted(asyncio.run(worker())) == list(range(JOBS_AT_ONCE))
    defaults = settings.PROCRASTINATE_WORKER_DEFAULTS
    assert (defaults["concurrency"], defaults["worker_middleware"]) == (JOBS_AT_ONCE, [own_threads])
