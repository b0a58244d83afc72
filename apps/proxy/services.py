"""What proxied traffic writes: the accelerators that a scan found."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence

from django.db import transaction

from apps.devices.models import Accelerator, Device


@transaction.atomic
def store_scan(*, device_id: uuid.UUID, found: Sequence[Mapping[str, str]], now: dt.datetime) -> None:
    """Keep what a scan of the device found: known ones are updated and keep `created_at`, others are added.

    What is not found any more stays, with its older `seen_at`. An unpaired device stores nothing.
    """
    # The row lock orders two scans of one device, and a scan against the unpairing.
    if not Device.objects.select_for_update().filter(pk=device_id, deleted_at=None).exists():
        return
    rows = [Accelerator(device_id=device_id, seen_at=now, updated_at=now, **item) for item in found]
    Accelerator.objects.bulk_create(
        sorted(rows, key=lambda row: row.serial),
        update_conflicts=True,
        unique_fields=["device", "serial"],
        update_fields=["chip", "usb_id", "firmware", "status", "seen_at", "updated_at"],
    )
