"""Who wants to be told of what, and what became of the telling (api.md, "Webhooks")."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models

from apps.common.models import BaseModel

MAX_URL: int = 2048


class Event(models.TextChoices):
    """What one can be told of."""

    DEVICE_ONLINE = "device.online"
    DEVICE_OFFLINE = "device.offline"
    DEVICE_PAIRED = "device.paired"
    DEVICE_UNPAIRED = "device.unpaired"
    DEPLOYMENT_FINISHED = "deployment.finished"


PING = "ping"
"""The event of a trial delivery: it is asked for, and goes to one webhook whatever it listens to."""


class DeliveryStatus(models.TextChoices):
    """`pending`: an attempt is due; `failed`: given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Webhook(BaseModel):
    """A URL that is told of events. The secret must be read again to sign, so it is sealed, not hashed."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="webhooks")
    url = models.CharField(max_length=MAX_URL)
    events = ArrayField(models.CharField(max_length=64))
    secret_sealed = models.TextField(editable=False)
    old_secret_sealed = models.TextField(blank=True, default="", editable=False)
    old_secret_until = models.DateTimeField(null=True, blank=True)  # signs beside the new one until then
    enabled = models.BooleanField(default=True)
    disabled_reason = models.CharField(max_length=64, blank=True, default="")  # empty: its owner's wish
    failing_since = models.DateTimeField(null=True, blank=True)  # of the first failure after the last success

    class Meta:
        db_table = "webhooks"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.origin

    @property
    def origin(self) -> str:
        """Where it goes, without the path and query, in which people put tokens: for logs, audit and admin."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


class WebhookDelivery(BaseModel):
    """One event on its way to one webhook. Every attempt sends the same body, and so the same event id."""

    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="deliveries")
    event_id = models.UUIDField()
    event = models.CharField(max_length=64)
    body = models.TextField()
    status = models.CharField(max_length=16, choices=DeliveryStatus.choices, default=DeliveryStatus.PENDING)
    attempts = models.PositiveIntegerField(default=0)
    first_attempt = models.PositiveIntegerField(default=0)  # how many there had been when it was last asked for
    response_status = models.PositiveIntegerField(null=True, blank=True)
    error = models.CharField(max_length=200, blank=True, default="")
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "webhook_deliveries"
        verbose_name_plural = "webhook deliveries"
        ordering = ("-created_at", "-id")
        constraints = (
            models.UniqueConstraint(fields=("webhook", "event_id"), name="webhook_deliveries_event_unique"),
            models.CheckConstraint(
                condition=models.Q(status__in=DeliveryStatus.values), name="webhook_deliveries_status_known"
            ),
        )
        indexes = (
            models.Index(fields=("webhook", "-created_at"), name="webhook_deliveries_log"),
            models.Index(fields=("created_at",), name="webhook_deliveries_age"),
            models.Index(
                fields=("webhook", "next_attempt_at"),
                condition=models.Q(status="pending"),
                name="webhook_deliveries_due",
            ),
        )

    def __str__(self) -> str:
        return f"{self.event} {self.status}"
