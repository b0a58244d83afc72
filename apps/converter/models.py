"""Conversions: a model that an external converter makes another of, for a chip (data.md)."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from apps.common.models import BaseModel
from apps.model_registry.models import AIModel


class ConversionStatus(models.TextChoices):
    """`queued` and `running` are under way (`OPEN`); the others are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (ConversionStatus.QUEUED, ConversionStatus.RUNNING)


class Conversion(BaseModel):
    """One order to the converter. `queued` until it has taken it, `running` until it has told how it ended.

    Attributes:
        owner: whose the result is; the model may be a built-in one.
        result: the new model, pending from when the converter may send its bytes; null before, and once it is purged.
        attempts: how often the order was sent.
    """

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversions")
    model = models.ForeignKey(AIModel, on_delete=models.CASCADE, related_name="conversions")
    chip = models.CharField(max_length=64)
    status = models.CharField(max_length=16, choices=ConversionStatus.choices, default=ConversionStatus.QUEUED)
    bytes_done = models.BigIntegerField(default=0)
    error = models.CharField(max_length=500, blank=True, default="")
    result = models.ForeignKey(AIModel, on_delete=models.SET_NULL, null=True, blank=True, related_name="converted_by")
    attempts = models.PositiveIntegerField(default=0)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "conversions"
        ordering = ("-created_at",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(status__in=ConversionStatus.values), name="conversions_status_known"
            ),
        )
        indexes = (
            models.Index(fields=("owner", "-created_at"), name="conversions_owner_created"),
            models.Index(
                fields=("created_at",),
                condition=models.Q(status__in=("queued", "running")),
                name="conversions_open",
            ),
        )

    def __str__(self) -> str:
        return f"{self.created_at:%Y-%m-%d %H:%M:%S} for {self.chip}"
