"""`manage.py seed`: the demo user, a device, a model, a cluster, and a pairing token for the demo box.

As often as one likes. It stands in the highest app, since it sows what each of the lower ones keeps.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.accounts.demo import DEMO_EMAIL, DEMO_PASSWORD, ensure_demo_user, static_user_id
from apps.clusters.services import ensure_cluster
from apps.common.actor import Actor
from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.devices.services import register_device
from apps.model_registry.models import AIModel
from apps.model_registry.seeding import ensure_model
from apps.pairing.models import PairingStatus, PairingToken
from apps.pairing.services import issue_token, revoke_token

DEMO_SERIAL: Final = "DEMO-0001"
DEMO_DEVICE: Final = "Demo box"
DEMO_CLUSTER: Final = "Demo cluster"
TOKEN_NAME: Final = "Demo box (seed)"  # noqa: S105 - a label
TTL_MINUTES: Final = 60


class Command(BaseCommand):
    help = (
        "Make the demo user, device, model and cluster, and a pairing token, as far as they are not there (idempotent)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object for other programs")
        parser.add_argument("--no-token", action="store_true", help="make no pairing token")

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.VISIONA["ENV"] == "production":
            raise CommandError("seed: not in production: the demo user's password is public")
        user = ensure_demo_user(staff=True)  # a newcomer sees the admin too; never in production
        device = _ensure_device(user.pk)
        model = _ensure_model(user.pk)
        cluster = ensure_cluster(
            actor=Actor.system("seed"),
            owner_id=user.pk,
            name=DEMO_CLUSTER,
            device_ids=[device.pk],
            now=timezone.now(),
        )
        facts = {
            "email": DEMO_EMAIL,
            "password": DEMO_PASSWORD,
            "user_id": static_user_id() or str(user.pk),
            "device_id": str(device.id),
            "serial": DEMO_SERIAL,
            "cluster_id": str(cluster.pk),
            "model_id": str(model.pk),
        }
        if not options["no_token"]:
            facts["pairing_token"] = _fresh_token(user.pk)
        if options["json"]:
            self.stdout.write(json.dumps(facts))
            return
        self.stdout.write(f"demo user: {facts['email']}, password: {facts['password']}")
        self.stdout.write(f"demo device: {device.name}, serial {DEMO_SERIAL}")
        self.stdout.write(f"demo model: {model.name} {model.version}, id {model.pk}")
        self.stdout.write(f"demo cluster: {cluster.name}, id {cluster.pk}")
        if "pairing_token" in facts:
            self.stdout.write(f"pairing token, good for {TTL_MINUTES} minutes: {facts['pairing_token']}")


def _ensure_device(owner_id: uuid.UUID) -> Device:
    found = Device.objects.filter(owner_id=owner_id, serial=DEMO_SERIAL, deleted_at=None).first()
    if found is not None:
        return found
    try:
        return register_device(
            actor=Actor.system("seed"),
            owner_id=owner_id,
            serial=DEMO_SERIAL,
            name=DEMO_DEVICE,
            chip="KL720",
            metadata={},
            now=timezone.now(),
        )
    except DomainError:  # another seed was quicker
        return Device.objects.get(owner_id=owner_id, serial=DEMO_SERIAL, deleted_at=None)


def _ensure_model(owner_id: uuid.UUID) -> AIModel:
    try:
        return ensure_model(actor=Actor.system("seed"), owner_id=owner_id, now=timezone.now())
    except DomainError as error:
        raise CommandError(f"seed: {error.message}") from error


def _fresh_token(owner_id: uuid.UUID) -> str:
    """A pairing token for the next hour; those of earlier starts that nobody used are revoked.

    A token cannot be shown twice, since only its hash is kept. The demo agent that still has its credential file never
    uses the new one; one that lost it redeems the new one, and is the same device by its serial.
    """
    actor, now = Actor.system("seed"), timezone.now()
    unused = PairingToken.objects.filter(owner_id=owner_id, name=TOKEN_NAME, status=PairingStatus.ISSUED)
    for token_id in unused.values_list("id", flat=True):
        revoke_token(actor=actor, token_id=token_id, owner_id=owner_id, now=now)
    return issue_token(actor=actor, owner_id=owner_id, name=TOKEN_NAME, ttl_minutes=TTL_MINUTES, now=now).secret
