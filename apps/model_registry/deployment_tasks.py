"""Jobs of deployments: thin, each calls one service."""

from __future__ import annotations

import uuid

from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app
from procrastinate.job_context import JobContext

from apps.model_registry import deployment_run, deployments

RETRY = RetryStrategy(max_attempts=10, wait=2)
"""For a database that does not answer before the deployment is claimed; after that `rescue` sees to it."""


@app.task(name=deployments.TASK, queue="deployments", retry=RETRY, pass_context=True)
def deploy(context: JobContext, *, deployment_id: str, run: int) -> None:
    """One turn of a deployment."""
    deployment_run.run(deployment_id=uuid.UUID(deployment_id), turn=run, leaving=context.should_abort)


@app.periodic(cron="* * * * * */5", queueing_lock="model_registry.rescue_deployments")
@app.task(name="model_registry.rescue_deployments", queue="presence")
def rescue_deployments(timestamp: int) -> None:
    """Every 5 s: what a killed worker was sending is taken up by another. In the queue whose jobs are soon dropped."""
    deployments.rescue(now=timezone.now())
