"""The steps of a conversion, as its tests take them: ordered, submitted, its result sent."""

from django.utils import timezone

from apps.converter import services
from apps.converter.models import Conversion
from apps.storage import services as storage
from tests.apps.converter.kit import report
from tests.apps.stores import sha256

RESULT = b"converted " * 100
MADE = {"status": "converted", "filename": "yolo.vtq", "size": len(RESULT), "sha256": sha256(RESULT)}


def order(api, model, chip="KL720"):
    answer = api("POST", "/api/conversions", {"model_id": str(model.id), "chip": chip})
    assert answer.status == 201, answer.json
    return Conversion.objects.get(id=answer.data["id"])


def shown(api, conversion):
    return api("GET", f"/api/conversions/{conversion.id}").data


def submit(conversion, number=0, now=None):
    result = services.submit(conversion_id=conversion.id, number=number, now=now or timezone.now())
    conversion.refresh_from_db()
    return result


def bytes_of(model):
    with storage.open_range(key=model.object_key, start=0, length=model.size) as pieces:
        return b"".join(pieces)


def sent(api, store, model, chip="KL720"):
    """A conversion whose result has been sent, but not reported as done."""
    conversion = order(api, model, chip)
    submit(conversion)
    assert store.send(report(conversion.id, MADE).data["upload"], RESULT).status == 201
    conversion.refresh_from_db()
    return conversion
