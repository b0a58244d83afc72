"""The check of an upload by a worker: one row a model, while it lasts and after it failed."""

from __future__ import annotations

from django.db import models

from apps.common.models import BaseModel


class FinalizationStatus(models.TextChoices):
    """`queued`: for any worker; `running`: one has it; `failed`: it ended, and the model is pending again.

    One that ends well has no row any more: the model is ready.
    """

    QUEUED = "queued"
    RUNNING = "running"
    FAILED = "failed"


class Finalization(BaseModel):
    """What a worker needs to check the bytes of a model, and how that ended.

    Attributes:
        run: raised whenever it is queued or claimed; each write of a worker names it, so that of two one is heard.
        upload_key: of the upload that is checked; the model's may be another by then.
        parts: number and ETag of each part, as the caller named them; None for an upload that has none.
        attempts: how often a worker has begun it since it was asked for; one that was given back does not count.
        actor: who asked, for the audit trail. language: in which the end is told.
        queued_at: since when it waits, or from when on it may be tried again.
        beat_at: when its worker was heard of last, by PostgreSQL's clock.
        error: `code`, `message`, `details` and `retry_after` of a failed one. told: whether its owner has read that.
    """

    # Without a constraint in the database: the release before deletes models and does not know of this table.
    model = models.OneToOneField(
        "model_registry.AIModel", on_delete=models.CASCADE, related_name="finalization", db_constraint=False
    )
    run = models.PositiveIntegerField(default=0)
    attempts = models.PositiveSmallIntegerField(default=0, db_default=0)
    status = models.CharField(max_length=16, choices=FinalizationStatus.choices, default=FinalizationStatus.QUEUED)
    upload_key = models.CharField(max_length=255)
    parts = models.JSONField(null=True, blank=True)
    actor = models.JSONField(default=dict)
    language = models.CharField(max_length=16, blank=True, default="")
    queued_at = models.DateTimeField()
    beat_at = models.DateTimeField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True)
    told = models.BooleanField(default=False)

    class Meta:
        db_table = "model_finalizations"
        constraints = (
            models.CheckConstraint(
                condition=models.Q(status__in=FinalizationStatus.values), name="model_finalizations_status_known"
            ),
        )
        indexes = (
            models.Index(
                fields=("queued_at",),
                condition=models.Q(status__in=[FinalizationStatus.QUEUED, FinalizationStatus.RUNNING]),
                name="model_finalizations_open",
            ),
        )

    def __str__(self) -> str:
        return f"{self.model_id} {self.status}"
