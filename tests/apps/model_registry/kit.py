"""What the tests of models share."""

import io
import uuid
from typing import Any

from django.utils import timezone

from apps.common.actor import Actor
from apps.model_registry import services
from apps.model_registry.models import AIModel, ModelSource
from tests.apps.conftest import Api
from tests.apps.stores import Store, sha256

ACTOR = Actor.system("tests")
DATA = bytes(range(256)) * 41


def init_body(**more: Any) -> dict[str, Any]:
    given = {"name": "yolo", "version": "1", "filename": "yolo.nef", "size": len(DATA), "chips": ["KL720"]}
    return {**given, **more}


def init(api: Api, **more: Any) -> dict[str, Any]:
    """The data of a successful init."""
    answer = api("POST", "/api/models/init", init_body(**more))
    assert answer.status == 201, answer.json
    return answer.data


def upload(api: Api, store: Store, data: bytes = DATA, **more: Any) -> dict[str, Any]:
    """A ready model by all the steps of an upload; its JSON."""
    begun = init(api, **{"size": len(data), "sha256": sha256(data), **more})
    assert store.send(begun["upload"], data).status in (200, 201)
    answer = api("POST", f"/api/models/{begun['model']['id']}/finalize")
    assert answer.status == 200, answer.json
    return answer.data


def ready(owner_id: uuid.UUID | None, name: str = "n", data: bytes = DATA, **facts: Any) -> AIModel:
    """A ready model made at once; a built-in one without an owner."""
    return services.create_ready(
        actor=ACTOR,
        owner_id=owner_id,
        facts=services.Facts(name, facts.pop("version", "1"), f"{name}.nef", **facts),
        stream=io.BytesIO(data),
        source=ModelSource.BUILTIN if owner_id is None else ModelSource.UPLOAD,
        now=timezone.now(),
    )
