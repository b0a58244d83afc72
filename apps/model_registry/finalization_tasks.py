"""Jobs of uploads that are checked: thin, each calls one service."""

from __future__ import annotations

from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.job_context import JobContext

from apps.model_registry import finalization, services


@app.task(name=finalization.TASK, queue="uploads", pass_context=True)
def finalize(context: JobContext) -> None:
    """Check what is queued."""
    services.check_uploads(leaving=context.should_abort)


@app.periodic(cron="* * * * * */5", queueing_lock="model_registry.rescue_finalizations")
@app.task(name="model_registry.rescue_finalizations", queue="presence")
def rescue_finalizations(timestamp: int) -> None:
    """Every 5 s: what a killed worker was checking is taken up by another. In the queue whose jobs are soon dropped."""
    finalization.rescue(now=timezone.now())
