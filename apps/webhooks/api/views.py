"""The webhook routes."""

from typing import Any, ClassVar

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404, ordering_field
from apps.common.http.responses import ok
from apps.webhooks import selectors, services
from apps.webhooks.api.serializers import (
    DeliverySerializer,
    IssuedWebhook,
    RedeliverBody,
    WebhookBody,
    WebhookChange,
    WebhookSerializer,
)
from apps.webhooks.models import PING, DeliveryStatus, Event, Webhook
from apps.webhooks.services import Issued


def _issued(issued: Issued) -> dict[str, Any]:
    webhook = issued.webhook
    shown: dict[str, Any] = IssuedWebhook(
        {"id": webhook.id, "url": webhook.url, "events": webhook.events, "secret": issued.secret}
    ).data
    return shown


class WebhookQuery(PageQuery):
    ordering = ordering_field("created_at", "updated_at", default="-created_at")


class WebhooksView(ApiView):
    query_classes: ClassVar = {"GET": WebhookQuery}

    @describe("Webhooks", answer=WebhookSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own webhooks."""
        rows = selectors.webhooks_of(self.user.pk)
        return self.page(rows, lambda found: list(WebhookSerializer(found, many=True).data))

    @describe("Webhooks", body=WebhookBody, answer=IssuedWebhook, status=201, errors=("QUOTA_EXCEEDED",))
    def post(self, request: Request) -> Response:
        """A URL that is told of events. Its signing secret is shown this once."""
        issued = services.create_webhook(
            actor=self.actor, owner_id=self.user.pk, now=timezone.now(), **self.body(WebhookBody)
        )
        return ok(_issued(issued), status=201)


class OneWebhookView(ApiView):
    """Whose path names a webhook of the user."""

    target: Webhook

    def load(self, request: Request, **kwargs: str) -> Webhook:
        return selectors.webhook_of(self.user.pk, id_or_404(kwargs["id"]))


class WebhookView(OneWebhookView):
    @describe("Webhooks", answer=WebhookSerializer)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """One webhook."""
        return ok(WebhookSerializer(self.target).data)

    @describe("Webhooks", body=WebhookChange, answer=WebhookSerializer)
    def patch(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Change where it goes and what it listens to, or switch it off and on."""
        webhook = services.change_webhook(
            actor=self.actor,
            owner_id=self.user.pk,
            webhook_id=self.target.id,
            changes=self.body(WebhookChange),
            now=timezone.now(),
        )
        return ok(WebhookSerializer(webhook).data)

    @describe("Webhooks")
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Delete a webhook with its log."""
        services.delete_webhook(actor=self.actor, owner_id=self.user.pk, webhook_id=self.target.id, now=timezone.now())
        return ok(None)


class SecretView(OneWebhookView):
    @describe("Webhooks", answer=IssuedWebhook)
    def post(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """A new signing secret, shown this once. For 24 h the old one signs too, as a second `v1`."""
        issued = services.rotate_secret(
            actor=self.actor, owner_id=self.user.pk, webhook_id=self.target.id, now=timezone.now()
        )
        return ok(_issued(issued))


class PingView(OneWebhookView):
    @describe("Webhooks", answer=DeliverySerializer, status=201, errors=("INVALID_STATE",))
    def post(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """A trial delivery with the event `ping`; the log tells what became of it. Ten a minute."""
        delivery = services.ping(actor=self.actor, owner_id=self.user.pk, webhook_id=self.target.id, now=timezone.now())
        return ok(DeliverySerializer(delivery).data, status=201)


class RedeliverView(OneWebhookView):
    @describe("Webhooks", body=RedeliverBody, answer=DeliverySerializer, errors=("INVALID_STATE",))
    def post(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Send a delivery that ended once more: the same body, and so the same event id."""
        delivery = services.redeliver(
            actor=self.actor,
            owner_id=self.user.pk,
            webhook_id=self.target.id,
            now=timezone.now(),
            **self.body(RedeliverBody),
        )
        return ok(DeliverySerializer(delivery).data)


class DeliveryQuery(PageQuery):
    status = serializers.ChoiceField(choices=DeliveryStatus.choices, required=False)
    event = serializers.ChoiceField(choices=[*Event.choices, (PING, PING)], required=False)


class DeliveriesView(OneWebhookView):
    query_classes: ClassVar = {"GET": DeliveryQuery}

    @describe("Webhooks", answer=DeliverySerializer, many=True)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """The log of what it was told, kept for 30 days."""
        rows = selectors.deliveries_of(
            self.target, status=self.query.get("status", ""), event=self.query.get("event", "")
        )
        return self.page(rows, lambda found: list(DeliverySerializer(found, many=True).data))
