"""Devices with a session token each, written straight into the database: ``python -m benchmarks.rows``.

Pairing five thousand boxes by hand is not what is measured. Reads JSON from its input (email, count, prefix), writes a
list of [device id, token] to its output.
"""

import datetime as dt
import json
import os
import sys

import django


def main() -> None:
    """One batch of devices."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    django.setup()
    from apps.accounts.models import User  # noqa: PLC0415 - Django has to be set up before
    from apps.devices.models import Device  # noqa: PLC0415 - as above
    from apps.pairing.models import SessionToken  # noqa: PLC0415 - as above
    from tunnel.contract import SESSION_PREFIX, hash_token, new_token  # noqa: PLC0415 - as above

    wanted = json.load(sys.stdin)
    owner = User.objects.get(email=wanted["email"])
    now = dt.datetime.now(dt.UTC)
    devices = [
        Device(owner=owner, name=f"{wanted['prefix']} {index}", serial=f"{wanted['prefix']}-{index}")
        for index in range(wanted["count"])
    ]
    Device.objects.bulk_create(devices, batch_size=1000)
    tokens = [new_token(SESSION_PREFIX) for _ in devices]
    SessionToken.objects.bulk_create(
        [
            SessionToken(
                token_hash=hash_token(token), device=device, issued_at=now, expires_at=now + dt.timedelta(days=365)
            )
            for device, token in zip(devices, tokens, strict=True)
        ],
        batch_size=1000,
    )
    json.dump([[str(device.id), token] for device, token in zip(devices, tokens, strict=True)], sys.stdout)


if __name__ == "__main__":
    main()
