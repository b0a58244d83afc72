"""The demo model of `manage.py seed`: ready, and with bytes that can be fetched and deployed."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import uuid
from typing import Final

from apps.common.actor import Actor
from apps.common.errors import DomainError
from apps.model_registry.models import AIModel, ModelSource, ModelStatus
from apps.model_registry.selectors import models_of
from apps.model_registry.services import Facts, create_ready, delete_model
from apps.storage import services as storage

FACTS: Final = Facts(
    name="Demo detector",
    version="1.0.0",
    filename="demo-detector.nef",
    description="Bytes without meaning, to try downloads and deployments with.",
    format="nef",
    chips=("KL520", "KL720"),
)
SIZE: Final = 256 << 10


def ensure_model(*, actor: Actor, owner_id: uuid.UUID, now: dt.datetime) -> AIModel:
    """The demo model, made if it is not there, or if its bytes are not (somebody removed the storage's folder).

    Raises DomainError where the storage does not answer.
    """
    rows = models_of(owner_id).filter(name=FACTS.name, version=FACTS.version)
    found = rows.first()
    if found is not None and found.status == ModelStatus.READY and _has_bytes(found):
        return found
    if found is not None:
        delete_model(actor=actor, owner_id=owner_id, model_id=found.id, now=now)
    try:
        return create_ready(
            actor=actor,
            owner_id=owner_id,
            facts=FACTS,
            stream=io.BytesIO(_content()),
            source=ModelSource.UPLOAD,
            now=now,
        )
    except DomainError as error:
        if error.code != "CONFLICT":
            raise
        return rows.get()  # another seed was quicker


def _has_bytes(model: AIModel) -> bool:
    try:
        with storage.open_range(key=model.object_key, start=0, length=model.size) as pieces:
            return next(pieces, b"") != b""
    except DomainError:
        return False


def _content() -> bytes:
    """The same at every start, and nothing that compresses."""
    return b"".join(hashlib.sha256(index.to_bytes(4)).digest() for index in range(SIZE // 32))
