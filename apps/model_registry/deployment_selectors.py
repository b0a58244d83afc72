"""Reads of deployments, scoped to their owner."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet

from apps.common.errors import not_found
from apps.model_registry.deployment_models import Deployment


def deployments_of(owner_id: uuid.UUID) -> QuerySet[Deployment]:
    """The user's deployments, finished ones too."""
    return Deployment.objects.filter(owner_id=owner_id)


def deployment_of(owner_id: uuid.UUID, deployment_id: uuid.UUID) -> Deployment:
    """One of them. Raises DomainError NOT_FOUND, for another user's too."""
    deployment = deployments_of(owner_id).filter(id=deployment_id).first()
    if deployment is None:
        raise not_found()
    return deployment


def filter_deployments(
    owner_id: uuid.UUID,
    *,
    model_id: uuid.UUID | None = None,
    device_id: uuid.UUID | None = None,
    status: str = "",
) -> QuerySet[Deployment]:
    """The user's deployments by model, device and status."""
    rows = deployments_of(owner_id)
    if model_id is not None:
        rows = rows.filter(model_id=model_id)
    if device_id is not None:
        rows = rows.filter(device_id=device_id)
    return rows.filter(status=status) if status else rows
