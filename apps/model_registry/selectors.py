"""Reads of models, scoped to who asks: their own, and the built-in ones."""

from __future__ import annotations

import uuid
from typing import Literal

from django.db.models import Q, QuerySet

from apps.common.errors import not_found
from apps.model_registry.models import AIModel

OwnerFilter = Literal["mine", "builtin", "all"]
MODEL_COLUMNS = (
    "id",
    "name",
    "version",
    "description",
    "filename",
    "format",
    "chips",
    "source",
    "status",
    "size",
    "sha256",
    "faa_object_key",
    "created_at",
    "updated_at",
)
"""What a list shows: named rows of these cost half of what whole objects do."""


def models_of(owner_id: uuid.UUID) -> QuerySet[AIModel]:
    """The user's own models that are not deleted."""
    return AIModel.objects.filter(owner_id=owner_id, deleted_at=None)


def readable_by(user_id: uuid.UUID) -> QuerySet[AIModel]:
    """What the user may read and deploy: their own models and the built-in ones."""
    return AIModel.objects.filter(Q(owner_id=user_id) | Q(owner=None), deleted_at=None)


def model_of(user_id: uuid.UUID, model_id: uuid.UUID) -> AIModel:
    """One that the user may read. Raises DomainError NOT_FOUND, for another user's too."""
    model = readable_by(user_id).filter(id=model_id).first()
    if model is None:
        raise not_found()
    return model


def filter_models(
    user_id: uuid.UUID,
    *,
    owner: OwnerFilter = "mine",
    chip: str = "",
    source: str = "",
    status: str = "",
    search: str = "",
) -> QuerySet[AIModel]:
    """The three-way filter (api.md, "Models"): whose, for which chip exactly, where from; and state and search."""
    if owner == "mine":
        rows = models_of(user_id)
    elif owner == "builtin":
        rows = AIModel.objects.filter(owner=None, deleted_at=None)
    else:
        rows = readable_by(user_id)
    if chip:
        rows = rows.filter(chips__contains=[chip])
    if source:
        rows = rows.filter(source=source)
    if status:
        rows = rows.filter(status=status)
    if search:
        rows = rows.filter(
            Q(name__icontains=search) | Q(version__icontains=search) | Q(description__icontains=search)
            | Q(filename__icontains=search)
        )  # fmt: skip
    return rows
