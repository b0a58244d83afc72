"""What the webhook routes take and answer."""

from typing import Any

from rest_framework import serializers

from apps.common.api.fields import FlagField, TextField, UuidField
from apps.webhooks.models import MAX_URL, PING, DeliveryStatus, Event, Webhook, WebhookDelivery

URL_HELP = "`https://`, a public host, port 80, 443 or 1024 and above; neither credentials nor a fragment."


class UrlField(TextField):
    """A URL as far as its text tells; where it leads is judged by the service. The schema tells of names alone."""

    _PORT = "80|443|102[4-9]|10[3-9][0-9]|1[1-9][0-9]{2}|[2-9][0-9]{3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}"
    schema_pattern = (
        r"^https://(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,63}"
        rf"(?::(?:{_PORT}|655[0-2][0-9]|6553[0-5]))?(?:[/?][!\x22$-\[\]-~]*)?$"
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=MAX_URL, help_text=URL_HELP, **kwargs)


class EventsField(serializers.ListField):
    """At least one event; each counts once."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("help_text", "What to be told of.")
        super().__init__(child=serializers.ChoiceField(choices=Event.choices), min_length=1, max_length=32, **kwargs)


class WebhookBody(serializers.Serializer[Any]):
    url = UrlField()
    events = EventsField()


class WebhookChange(serializers.Serializer[Any]):
    url = UrlField(required=False)
    events = EventsField(required=False)
    enabled = FlagField(required=False, help_text="True forgives its failures; false: it is told nothing.")


class IssuedWebhook(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    url = serializers.CharField()
    events = serializers.ListField(child=serializers.ChoiceField(choices=Event.choices))
    secret = serializers.CharField(help_text="Signs what it is told: `whsec_` and 64 hex digits. Shown this once.")


class WebhookSerializer(serializers.ModelSerializer[Webhook]):
    """A webhook, without its secret."""

    events = serializers.ListField(child=serializers.ChoiceField(choices=Event.choices))
    enabled = serializers.BooleanField(help_text="False: it is told nothing.")
    disabled_reason = serializers.CharField(help_text="`failing`: nothing was taken for days; empty: its owner's wish.")
    failing_since = serializers.DateTimeField(
        allow_null=True, help_text="Of the first failure after the last success; null: it takes what it is told."
    )

    class Meta:
        model = Webhook
        fields = ("id", "url", "events", "enabled", "disabled_reason", "failing_since", "created_at", "updated_at")


class DeliverySerializer(serializers.ModelSerializer[WebhookDelivery]):
    """One event on its way to the webhook."""

    event = serializers.ChoiceField(choices=[*Event.choices, (PING, PING)])
    event_id = serializers.UUIDField(help_text="The `id` in the body, the same in each attempt.")
    status = serializers.ChoiceField(choices=DeliveryStatus.choices)
    attempts = serializers.IntegerField(help_text="How often it was sent.")
    response_status = serializers.IntegerField(allow_null=True, help_text="Of the last attempt; null: no answer.")
    error = serializers.CharField(help_text="Why the last attempt got no answer; empty: it got one.")
    next_attempt_at = serializers.DateTimeField(allow_null=True)
    delivered_at = serializers.DateTimeField(allow_null=True)

    class Meta:
        model = WebhookDelivery
        fields = (
            "id",
            "event",
            "event_id",
            "status",
            "attempts",
            "response_status",
            "error",
            "next_attempt_at",
            "delivered_at",
            "created_at",
        )


class RedeliverBody(serializers.Serializer[Any]):
    delivery_id = UuidField(help_text="A delivery of this webhook that ended.")
