"""Deployments: a model's bytes on their way to a device (data.md)."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from apps.common.models import BaseModel


class DeploymentStatus(models.TextChoices):
    """`queued` and `sending` change into each other as workers and the device come and go; the others are ends."""

    QUEUED = "queued"
    SENDING = "sending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (DeploymentStatus.QUEUED, DeploymentStatus.SENDING)


class Deployment(BaseModel):
    """One transfer. A worker writes to it only while `run` is what it claimed, so that of two one is heard.

    Attributes:
        bytes_done: what has left for the device; after an interruption, what the device says that it has.
        confirmed: the most that the device ever said that it has.
        error_code, error_message: why it failed, or what it waits for; empty otherwise.
        run: raised with each claim and each rescue.
        attempts: failures in a row in which `confirmed` did not grow.
        moved_at: when bytes moved last, or it was made: how long it may go on waiting.
        beat_at: when its worker was last heard of, by PostgreSQL's clock; None while none has it.
        request_id: of the call that asked for it.
    """

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="deployments")
    model = models.ForeignKey("model_registry.AIModel", on_delete=models.CASCADE, related_name="deployments")
    device = models.ForeignKey("devices.Device", on_delete=models.CASCADE, related_name="deployments")
    status = models.CharField(max_length=16, choices=DeploymentStatus.choices, default=DeploymentStatus.QUEUED)
    bytes_done = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField()
    confirmed = models.BigIntegerField(default=0)
    error_code = models.CharField(max_length=64, blank=True, default="")
    error_message = models.CharField(max_length=500, blank=True, default="")
    run = models.BigIntegerField(default=0)
    attempts = models.IntegerField(default=0)
    moved_at = models.DateTimeField()
    beat_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        db_table = "deployments"
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("model", "device"),
                condition=models.Q(status__in=[status.value for status in ACTIVE]),
                name="deployments_one_active",
            ),
            models.CheckConstraint(
                condition=models.Q(status__in=DeploymentStatus.values), name="deployments_status_known"
            ),
            models.CheckConstraint(
                condition=models.Q(bytes_done__gte=0, bytes_done__lte=models.F("bytes_total")),
                name="deployments_bytes_range",
            ),
        )
        indexes = (
            models.Index(fields=("owner", "created_at"), name="deployments_owner_created"),
            models.Index(
                fields=("beat_at",),
                condition=models.Q(status=DeploymentStatus.SENDING.value),
                name="deployments_sending_beat",
            ),
        )

    def __str__(self) -> str:
        return f"{self.created_at:%Y-%m-%d %H:%M:%S} {self.status}"
