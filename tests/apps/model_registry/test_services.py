"""The services of models, on both stores."""

import io

import pytest
from django.utils import timezone

from apps.common.actor import Actor
from apps.model_registry import services
from apps.model_registry.models import AIModel, ModelSource
from apps.storage import services as storage

ACTOR = Actor.system("tests")


def test_a_model_of_bytes_at_hand(alice, settings, tmp_path):
    settings.VISIONA = {**settings.VISIONA, "STORAGE_DIR": str(tmp_path)}
    model = services.create_converted(
        actor=ACTOR,
        owner_id=alice.pk,
        facts=services.Facts("n", "1", "f.nef", chips=["KL720"]),
        stream=io.BytesIO(b"0123456789"),
        now=timezone.now(),
    )
    assert (model.size, model.source, model.status) == (10, "converted", "ready")
    with storage.open_range(key=model.object_key, start=2, length=5) as pieces:
        assert b"".join(pieces) == b"23456"
