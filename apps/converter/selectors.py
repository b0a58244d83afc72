"""Reads of conversions, scoped to their owner."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db.models import QuerySet

from apps.common.errors import not_found
from apps.converter.models import Conversion


def configured() -> bool:
    """Whether there is a converter."""
    return bool(settings.VISIONA["CONVERTER_URL"])


def conversions_of(owner_id: uuid.UUID) -> QuerySet[Conversion]:
    """What the user ordered, with the model that it is made of: its size is shown."""
    return Conversion.objects.filter(owner_id=owner_id).select_related("model")


def conversion_of(owner_id: uuid.UUID, conversion_id: uuid.UUID) -> Conversion:
    """One of them. Raises DomainError NOT_FOUND, for another user's too."""
    conversion = conversions_of(owner_id).filter(id=conversion_id).first()
    if conversion is None:
        raise not_found()
    return conversion


def filter_conversions(
    owner_id: uuid.UUID, *, status: str = "", model_id: uuid.UUID | None = None
) -> QuerySet[Conversion]:
    """The user's conversions by state and by the model that they are made of."""
    rows = conversions_of(owner_id)
    if status:
        rows = rows.filter(status=status)
    return rows if model_id is None else rows.filter(model_id=model_id)
