"""What the device routes take and answer."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.common.api.fields import PlainField, TextField
from apps.devices.models import Accelerator, Device, DeviceEvent, DeviceStatus, LinkStatus
from apps.devices.selectors import DeviceRow
from apps.devices.serials import is_junk
from apps.devices.twins import is_cloned
from apps.tunnels.registry import Entry

MAX_METADATA_BYTES: Final = 16_384
_ONLINE: Final = LinkStatus.ONLINE.value
_OFFLINE: Final = LinkStatus.OFFLINE.value
SERIAL: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}\Z")


@extend_schema_field({"type": "object", "additionalProperties": {}})
class MetadataField(serializers.JSONField):
    """A JSON object of at most 16 KiB, for what the front end wants to keep with a device."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise serializers.ValidationError(_("Must be an object."))
        try:
            size = len(orjson.dumps(data))
        except orjson.JSONEncodeError:
            raise serializers.ValidationError(_("Nested too deeply.")) from None
        if size > MAX_METADATA_BYTES:
            raise serializers.ValidationError(
                _("May have %(bytes)d bytes of JSON at most.") % {"bytes": MAX_METADATA_BYTES}
            )
        if _has_null_character(data):
            raise serializers.ValidationError(_("Null characters are not allowed."))
        return super().to_internal_value(data)


def _has_null_character(value: Any) -> bool:
    """Whether a text or a key anywhere in it has one: PostgreSQL takes none. Its depth is bounded by orjson's (254)."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _has_null_character(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_null_character(item) for item in value)


class SerialField(TextField):
    """A serial number: 1 to 128 printable characters."""

    # No fillers such as zeros (`is_junk`); the words that it refuses too are too many for a schema.
    schema_pattern = r"^[^\u0000-\u001f\u007f]*[^\W_0][^\u0000-\u001f\u007f]*$"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=128, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if not SERIAL.match(text):
            raise serializers.ValidationError(_("Printable characters only."))
        if is_junk(text):
            raise serializers.ValidationError(_("Thousands of boxes say this serial: it tells none from another."))
        return text


@extend_schema_field({"type": "boolean", "enum": [False]})
class OnlyFalse(serializers.BooleanField):
    """A mark that can be taken off, and not put on."""

    def to_internal_value(self, data: Any) -> bool:
        if data is not False:
            self.fail("invalid", input=data)
        return False


class RegisterBody(serializers.Serializer[Any]):
    serial = SerialField()
    name = PlainField(max_length=200, allow_blank=True, default="", help_text="Empty: the serial.")
    chip = PlainField(max_length=64, allow_blank=True, default="")
    metadata = MetadataField(default=dict)


class ChangeBody(serializers.Serializer[Any]):
    name = PlainField(max_length=200, required=False)
    metadata = MetadataField(required=False, help_text="Replaces what was there.")
    possible_twin = OnlyFalse(
        required=False,
        help_text="`false` dismisses the mark, of both of a pair; it comes back for a new finding only.",
    )


class DeviceSerializer(serializers.ModelSerializer[Device]):
    """A device. `link_status` is the registry's word."""

    # Describes what `shown` makes: DRF's way of a field at a time took a third of the time of a list.
    link_status = serializers.ChoiceField(choices=LinkStatus.choices, read_only=True)
    connected_at = serializers.DateTimeField(read_only=True, allow_null=True)
    possible_twin = serializers.BooleanField(
        read_only=True,
        help_text="Another of your boxes says the same serial; the event `possible_twin` names it, with addresses.",
    )
    cloned = serializers.SerializerMethodField(
        help_text="Two agents have taken turns with its credential, as of a copied card, within the last 24 hours; "
        "the event `cloned` has both addresses."
    )

    class Meta:
        model = Device
        fields = (
            "id",
            "name",
            "serial",
            "claimed_serial",
            "chip",
            "firmware",
            "agent_version",
            "address",
            "local_address",
            "local_listening",
            "link_status",
            "device_status",
            "connected_at",
            "last_seen_at",
            "possible_twin",
            "cloned",
            "metadata",
            "created_at",
            "updated_at",
        )
        extra_kwargs: Mapping[str, Any] = {
            "device_status": {"choices": DeviceStatus.choices},
            "claimed_serial": {
                "help_text": "What its agent says where that is no serial, or another box's; else empty."
            },
            "local_address": {
                "help_text": "`host:port` on the box that its agent makes reachable, as it says; empty: it does not."
            },
            "local_listening": {
                "help_text": "Whether anything listened there when the agent connected; null: it did not look."
            },
            "agent_version": {"help_text": "`name/version` that the agent says; empty for one that says nothing."},
        }

    def get_cloned(self, device: Device) -> bool:
        return is_cloned(device.cloned_at, timezone.now())


def shown(device: Device | DeviceRow, entry: Entry | None) -> dict[str, Any]:
    """The device as DeviceSerializer describes it; `entry` is the registry's, None: it is offline.

    Ids and moments stay as they are: the renderer writes them, and much faster.
    """
    return {
        "id": device.id,
        "name": device.name,
        "serial": device.serial,
        "claimed_serial": device.claimed_serial,
        "chip": device.chip,
        "firmware": device.firmware,
        "agent_version": device.agent_version,
        "address": device.address,
        "local_address": device.local_address,
        "local_listening": device.local_listening,
        "link_status": _ONLINE if entry else _OFFLINE,
        "device_status": str(device.device_status),
        "connected_at": dt.datetime.fromisoformat(entry.connected_at) if entry else None,
        "last_seen_at": device.last_seen_at,
        "possible_twin": device.twin_at is not None,
        "cloned": device.cloned_at is not None and is_cloned(device.cloned_at, timezone.now()),
        "metadata": device.metadata,
        "created_at": device.created_at,
        "updated_at": device.updated_at,
    }


class PairedDevice(serializers.Serializer[Any]):
    device_id = serializers.UUIDField()
    name = serializers.CharField()
    serial = serializers.CharField(allow_null=True)
    connected = serializers.BooleanField(help_text="The registry's word, at once.")
    connected_at = serializers.DateTimeField(allow_null=True)
    agent_version = serializers.CharField()
    address = serializers.CharField()
    last_seen_at = serializers.DateTimeField(allow_null=True)


class PairingStatusAnswer(serializers.Serializer[Any]):
    connected = serializers.BooleanField(help_text="Whether any of them is.")
    devices = PairedDevice(many=True)


class AcceleratorSerializer(serializers.ModelSerializer[Accelerator]):
    class Meta:
        model = Accelerator
        fields = ("id", "serial", "chip", "usb_id", "firmware", "status", "seen_at", "created_at")


class DeviceEventSerializer(serializers.ModelSerializer[DeviceEvent]):
    detail = serializers.JSONField(help_text="For `disconnected`: `reason`, `code`, bytes and streams of the session.")

    class Meta:
        model = DeviceEvent
        fields = ("id", "at", "action", "actor", "address", "request_id", "detail")
