"""How long devices that were deleted, and what happened to devices, are kept."""

from typing import Final

from apps.audit.retention import Rule
from apps.devices.models import Device, DeviceEvent

EVENTS: Final = Rule(
    "device events", "KEEP_DEVICE_EVENTS_DAYS", lambda before: DeviceEvent.objects.filter(at__lt=before)
)
DELETED: Final = Rule(
    "deleted devices", "KEEP_DELETED_DAYS", lambda before: Device.objects.filter(deleted_at__lt=before)
)
"""With their accelerators and tokens; their events stay for as long as all events do."""
