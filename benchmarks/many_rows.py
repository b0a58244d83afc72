"""Many rows in each table that a route lists, of one user: ``python -m benchmarks.many_rows``.

Reads JSON from its input (email, count), writes the paths of the lists to its output. Straight into the database.
"""

import datetime as dt
import json
import os
import sys
import uuid
from typing import Any

import django


def main() -> None:
    """One user's rows."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    django.setup()
    from django.db import connection  # noqa: PLC0415 - Django has to be set up before

    wanted = json.load(sys.stdin)
    paths = _fill(wanted["email"], wanted["count"])
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")  # as autovacuum does on a running server
    json.dump(paths, sys.stdout)


def _fill(email: str, count: int) -> list[str]:
    from apps.accounts.models import User  # noqa: PLC0415 - Django has to be set up before
    from apps.audit.models import AuditEvent  # noqa: PLC0415 - as above
    from apps.clusters.models import Cluster  # noqa: PLC0415 - as above
    from apps.converter.models import Conversion  # noqa: PLC0415 - as above
    from apps.devices.models import Accelerator, Device, DeviceEvent  # noqa: PLC0415 - as above
    from apps.model_registry.models import AIModel  # noqa: PLC0415 - as above
    from apps.pairing.models import PairingToken  # noqa: PLC0415 - as above
    from apps.webhooks.models import Webhook, WebhookDelivery  # noqa: PLC0415 - as above

    owner, now = User.objects.get(email=email), dt.datetime.now(dt.UTC)

    def make(table: Any, **columns: Any) -> list[Any]:
        """`count` rows; a column that can be called gets the row's number."""
        rows = [table(**{k: v(n) if callable(v) else v for k, v in columns.items()}) for n in range(count)]
        return list(table.objects.bulk_create(rows, batch_size=1000))

    device = make(Device, owner=owner, name=lambda n: f"box {n}", serial=lambda n: f"S-{n}", chip="KL720")[0]
    make(Accelerator, device=device, serial=lambda n: f"0x{n:04x}", chip="KL720", seen_at=now)
    make(DeviceEvent, at=now, device_id=device.pk, action="device.connected")
    make(PairingToken, token_hash=lambda _: uuid.uuid4().hex * 2, owner=owner, expires_at=now + dt.timedelta(hours=1))
    model = make(
        AIModel, owner=owner, name=lambda n: f"model {n}", version="1", filename="m.nef", chips=["KL720"], size=1,
        object_key=lambda _: uuid.uuid4().hex,
    )[0]  # fmt: skip
    make(Conversion, owner=owner, model=model, chip="KL720", status="failed")
    make(Cluster, owner=owner, name=lambda n: f"cluster {n}")
    hook = Webhook.objects.create(owner=owner, url="https://example.com/", events=["device.online"])
    make(WebhookDelivery, webhook=hook, event_id=lambda _: uuid.uuid4(), event="device.online", body="{}")
    make(AuditEvent, at=now, actor=str(owner.pk), action="auth.login")
    return [
        "/api/devices", f"/api/devices/{device.pk}/accelerators", f"/api/devices/{device.pk}/events",
        "/api/devices?search=box", "/api/pairing/tokens", "/api/models", "/api/models?chip=KL720", "/api/conversions",
        "/api/clusters", f"/api/webhooks/{hook.pk}/deliveries", "/api/audit", "/api/audit?action=auth.login",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
