"""What the worker is given beside the jobs: a thread for each that it runs at once."""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from weakref import WeakKeyDictionary

from procrastinate.job_context import JobContext
from procrastinate.middleware import AsyncCallNext
from procrastinate.worker import Worker

JOBS_AT_ONCE: Final = 12
"""In one worker process: four deployments and four deliveries to webhooks, however long they take, and four others."""
_executors: WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = WeakKeyDictionary()


async def own_threads(call_next: AsyncCallNext, context: JobContext, worker: Worker) -> Any:  # noqa: ARG001 - interface
    """asyncio's own executor has four threads more than the machine has cores: on two cores jobs that hang would take
    all of them, and nothing else would run."""
    loop = asyncio.get_running_loop()
    if loop not in _executors:
        _executors[loop] = ThreadPoolExecutor(JOBS_AT_ONCE, thread_name_prefix="job")
        loop.set_default_executor(_executors[loop])  # which asyncio shuts down with the loop
    return await call_next()


async def counted(call_next: AsyncCallNext, context: JobContext, worker: Worker) -> Any:
    """Counts the job, and serves the worker's figures. Loaded with the first one: the settings name this, and an API
    process must not load prometheus_client before it knows its folder."""
    figures = importlib.import_module("cloud.worker_metrics")
    return await figures.counted(call_next, context, worker)
