"""What the pairing routes take and answer."""

from typing import Any

from rest_framework import serializers

from apps.common.api.fields import PlainField, WholeField
from apps.pairing.models import PairingToken
from apps.pairing.services import DEFAULT_TTL_MINUTES, MAX_TTL_MINUTES


class TokenBody(serializers.Serializer[Any]):
    name = PlainField(max_length=200, allow_blank=True, default="", help_text="Names the device that it makes.")
    ttl_minutes = WholeField(
        min_value=1,
        max_value=MAX_TTL_MINUTES,
        default=DEFAULT_TTL_MINUTES,
        help_text="The first use must come within this time.",
    )


class IssuedToken(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    token = serializers.CharField(help_text="Shown once: `vAc_` and 32 hex digits.")
    name = serializers.CharField()
    expires_at = serializers.DateTimeField()
    command = serializers.CharField(help_text="The line to paste on the box.")


class TokenSerializer(serializers.ModelSerializer[PairingToken]):
    """A pairing token as it is listed: never the token itself."""

    device_id = serializers.UUIDField(allow_null=True, help_text="The device that it was redeemed for.")

    class Meta:
        model = PairingToken
        fields = ("id", "name", "status", "device_id", "created_at", "expires_at", "paired_at", "last_used_at")
