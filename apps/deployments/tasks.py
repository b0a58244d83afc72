"""Jobs of deployments: thin, each calls one service."""

from __future__ import annotations

import uuid

from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app
from procrastinate.job_context import JobContext

from apps.deployments import services, transfer

RETRY = RetryStrategy(max_attempts=10, wait=2)
"""For a database that does not answer before the deployment is claimed; from then on it is rescued."""


@app.task(name=services.TASK, aliases=[services.NEXT_TASK], queue="deployments", retry=RETRY, pass_context=True)
def deploy(context: JobContext, *, deployment_id: str, run: int) -> None:
    """Send what the box lacks of the model."""
    transfer.continue_deployment(deployment_id=uuid.UUID(deployment_id), run=run, stopping=context.should_abort)


@app.periodic(cron="* * * * * */5", queueing_lock="model_registry.rescue_deployments")
@app.task(name="model_registry.rescue_deployments", aliases=["deployments.rescue"], queue="presence")
def rescue_deployments(timestamp: int) -> None:
    """Every 5 s: deployments of killed workers go to others. In the queue whose finished jobs are soon deleted.

    Its name is the one that workers of the release before know: of both, one queues it each time, and either runs it.
    """
    services.rescue_deployments(now=timezone.now())
