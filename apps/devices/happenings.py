"""What webhooks are told of a device (docs/webhooks.md): its id, name and serial, and what belongs to the event."""

from __future__ import annotations

import uuid
from typing import Any

from apps.webhooks.services import Happening


def happening(
    event: str,
    *,
    owner_id: uuid.UUID,
    device_id: uuid.UUID,
    name: str,
    serial: str | None,
    event_id: uuid.UUID | None = None,
    **more: Any,
) -> Happening:
    """`event_id` where the same thing may be reported twice; None: it happens once."""
    data = {"device_id": str(device_id), "name": name, "serial": serial, **more}
    if event_id is None:
        return Happening(owner_id, event, data)
    return Happening(owner_id, event, data, event_id)
