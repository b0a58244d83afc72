"""What a scan of every online device answers."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.common.errors import DomainError
from apps.devices.api.serializers import AcceleratorSerializer
from apps.proxy.scan_all import Found


class ScanError(serializers.Serializer[Any]):
    code = serializers.CharField()
    message = serializers.CharField()


class DeviceScan(serializers.Serializer[Any]):
    device_id = serializers.UUIDField()
    ok = serializers.BooleanField()
    accelerators = AcceleratorSerializer(many=True)
    error = ScanError(required=False, help_text="Only where `ok` is false.")


class ScanAllAnswer(serializers.Serializer[Any]):
    results = DeviceScan(many=True)


def shown(found: Found) -> dict[str, Any]:
    """One device's result as DeviceScan describes it."""
    facts: dict[str, Any] = {
        "device_id": found.device_id,
        "ok": not found.error,
        "accelerators": list(found.accelerators),
    }
    if found.error:
        facts["error"] = {"code": found.error, "message": DomainError(found.error).message}
    return facts
