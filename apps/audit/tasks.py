"""Jobs on the audit trail: thin, each calls one service."""

from django.utils import timezone
from procrastinate.contrib.django import app

from apps.audit import retention
from apps.common.actor import Actor


@app.periodic(cron="41 * * * *", queueing_lock="audit.retention")
@app.task(name="audit.retention", queue="maintenance")
def sweep(timestamp: int) -> None:
    """Every hour: audit events that are kept no longer are deleted."""
    retention.sweep(retention.AUDIT, actor=Actor.system("worker"), now=timezone.now())
