"""Reads of webhooks and their log, scoped to their owner. No secret leaves here."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet

from apps.common.errors import not_found
from apps.webhooks.models import Webhook, WebhookDelivery


def webhooks_of(owner_id: uuid.UUID) -> QuerySet[Webhook]:
    """The user's webhooks, disabled ones too."""
    return Webhook.objects.filter(owner_id=owner_id).defer("secret_sealed", "old_secret_sealed")


def webhook_of(owner_id: uuid.UUID, webhook_id: uuid.UUID) -> Webhook:
    """One of them. Raises DomainError NOT_FOUND, for another user's too."""
    webhook = webhooks_of(owner_id).filter(id=webhook_id).first()
    if webhook is None:
        raise not_found()
    return webhook


def deliveries_of(webhook: Webhook, *, status: str = "", event: str = "") -> QuerySet[WebhookDelivery]:
    """Its log; empty words filter nothing."""
    rows = WebhookDelivery.objects.filter(webhook_id=webhook.id)
    if status:
        rows = rows.filter(status=status)
    return rows.filter(event=event) if event else rows
