"""One of everything that a user may own, for the tests of who may do what: path parameters by kind."""

from django.utils import timezone

from apps.accounts import sessions
from apps.accounts.models import Passkey, User, UserIdentity
from apps.clusters import services as clusters
from apps.common.actor import Actor
from apps.converter.models import Conversion
from apps.deployments import services
from apps.devices.models import Device
from apps.model_registry.models import AIModel
from apps.pairing import services as pairing
from apps.storage import services as storage
from apps.webhooks import services as webhooks
from tests.apps.accounts.passkey_kit import passkey_on

SYSTEM = Actor.system("tests")


def make_all(owner: User) -> dict[str, dict[str, str]]:
    """Path parameters of one object of each kind, all the owner's."""
    device = Device.objects.create(owner=owner, name="Hall", serial="S-1")
    issued = pairing.issue_token(actor=SYSTEM, owner_id=owner.pk, name="t", ttl_minutes=60, now=timezone.now())
    _, session = sessions.create(user_id=owner.pk, address="192.0.2.1", agent="tests", now=timezone.now())
    cluster = clusters.create_cluster(actor=SYSTEM, owner_id=owner.pk, name="c", now=timezone.now())
    clusters.put_member(
        actor=SYSTEM, owner_id=owner.pk, cluster_id=cluster.pk, device_id=device.pk, weight=1, now=timezone.now()
    )
    webhook = webhooks.create_webhook(
        actor=SYSTEM, owner_id=owner.pk, url="https://example.com/", events=["device.online"], now=timezone.now()
    ).webhook
    _upload_key, object_key = storage.new_keys()
    model = AIModel.objects.create(
        owner=owner, name="m", version="1", filename="m.nef", size=1, sha256="0" * 64, status="ready",
        object_key=object_key,
    )  # fmt: skip
    deployment = services.begin_deployment(
        actor=SYSTEM, owner_id=owner.pk, model_id=model.pk, device_id=device.pk, now=timezone.now()
    )
    passkey_on(owner)
    passkey = Passkey.objects.get(factor__user=owner)
    identity = UserIdentity.objects.create(user=owner, issuer="https://id.example", subject=str(owner.pk))
    conversion = Conversion.objects.create(owner=owner, model=model, chip="KL720")
    return {
        "conversion": {"id": str(conversion.pk)},
        "deployment": {"id": str(deployment.pk)},
        "model": {"id": str(model.pk)},
        "webhook": {"id": str(webhook.pk)},
        "device": {"id": str(device.pk), "device_id": str(device.pk), "path": "x"},
        "cluster": {"id": str(cluster.pk), "device_id": str(device.pk), "path": "x"},
        "pairing token": {"id": str(issued.token.id)},
        "identity": {"id": str(identity.pk)},
        "passkey": {"id": str(passkey.pk)},
        "session": {"id": str(session.id)},
    }
