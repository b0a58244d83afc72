"""Jobs on devices, and the upkeep of jobs: thin, each calls one service.

No job holds procrastinate's `lock`: that of a worker which was killed would stay, and stop the job for good. They may
run twice at once instead, and are written so.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from typing import Final

from django.conf import settings
from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app
from procrastinate.job_context import JobContext
from procrastinate.jobs import Job, Status

from apps.audit.retention import sweep as sweep_by
from apps.common.actor import Actor
from apps.devices import presence, retention, services
from apps.tunnels import services as tunnels
from tunnel.contract import CLOSE_REVOKED

RETRY = RetryStrategy(max_attempts=10, wait=2)
PRESENCE_QUEUE = "presence"
STALLED_SECONDS: Final = 30
"""Without a heartbeat of its worker for this long, a job is another's to do."""
SETTLE_SECONDS: Final = 1.0


@app.periodic(cron="* * * * * */5", queueing_lock="devices.follow_registry")
@app.task(name="devices.follow_registry", queue=PRESENCE_QUEUE)
def follow_registry(timestamp: int) -> None:
    """Every 5 s: PostgreSQL's copy of presence follows the registry, and closes that failed are tried again."""
    presence.follow_registry(now=timezone.now())
    presence.close_forbidden()
    tunnels.close_pending()


@app.task(name="devices.token_revoked", queue="tunnels", retry=RETRY)
def token_revoked(*, device_id: str, epoch: int, at: str, actor: str, address: str, request_id: str) -> None:
    """A token of the device was revoked: note it, and close the tunnel that it held if that is still to be done."""
    who = Actor(user_id=actor, label="", address=address, request_id=request_id)
    services.note_revocation(actor=who, device_id=uuid.UUID(device_id), at=dt.datetime.fromisoformat(at))
    tunnels.end_devices({device_id: epoch}, code=CLOSE_REVOKED, reason="revoked", request_id=request_id)


@app.task(name="devices.unpair_all", queue="tunnels", retry=RETRY)
def unpair_all(*, user_id: str, request_id: str = "", before: str = "") -> None:
    """Unpair all devices of a user who leaves, or those that were made until a moment (ISO 8601)."""
    services.unpair_all(
        actor=Actor.system("worker", request_id=request_id),
        owner_id=uuid.UUID(user_id),
        now=timezone.now(),
        before=dt.datetime.fromisoformat(before) if before else None,
    )


@app.periodic(cron="7 * * * *", queueing_lock="devices.remove_old_jobs")
@app.task(name="devices.remove_old_jobs", queue="maintenance", pass_context=True)
async def remove_old_jobs(context: JobContext, timestamp: int) -> None:
    """Finished jobs are kept for `VISIONA_KEEP_JOBS_DAYS`, those of every 5 s for an hour."""
    manager = context.app.job_manager
    for hours, queue in ((1, PRESENCE_QUEUE), (settings.VISIONA["KEEP_JOBS_DAYS"] * 24, None)):
        await manager.delete_old_jobs(
            nb_hours=hours, queue=queue, include_failed=True, include_cancelled=True, include_aborted=True
        )


@app.periodic(cron="43 * * * *", queueing_lock="devices.retention")
@app.task(name="devices.retention", queue="maintenance")
def sweep(timestamp: int) -> None:
    """Every hour: device events and deleted devices that are kept no longer are deleted for good."""
    for rule in (retention.EVENTS, retention.DELETED):
        sweep_by(rule, actor=Actor.system("worker"), now=timezone.now())


@app.periodic(cron="* * * * *", queueing_lock="devices.retry_stalled_jobs")
@app.task(name="devices.retry_stalled_jobs", queue="maintenance", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:
    """Every minute: jobs of a worker that was killed are done by another; of the periodic ones the next turn does."""
    manager = context.app.job_manager
    stalled = [*await manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_SECONDS), *await _unfinished(context)]
    for job in stalled:
        if job.queueing_lock is not None:
            await manager.finish_job(job, status=Status.FAILED, delete_job=True)
        else:
            await manager.retry_job(job)


async def _unfinished(context: JobContext) -> list[Job]:
    """Jobs that this worker no longer runs, though it lives: their end could not be written while PostgreSQL was away.

    The worker names the task of each job that it runs by the job's name and id; one that was just fetched is given
    time to get its task.
    """
    manager, own = context.app.job_manager, context.job.worker_id
    before = {job.id for job in await manager.list_jobs_async(status=Status.DOING.value, worker_id=own)}
    await asyncio.sleep(SETTLE_SECONDS)
    running = {task.get_name() for task in asyncio.all_tasks()}
    doing = await manager.list_jobs_async(status=Status.DOING.value, worker_id=own)
    return [job for job in doing if job.id in before and f"process job {job.task_name}[{job.id}]" not in running]
