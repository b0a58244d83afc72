"""Reads of deployments, scoped to their owner; and what a worker asks."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet

from apps.common.errors import not_found
from apps.deployments.models import ACTIVE, Deployment, DeploymentStatus


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


# --- what a worker asks -----------------------------------------------------------------------------------------------
def owner_of_active(deployment_id: uuid.UUID) -> uuid.UUID | None:
    """Whose deployment it is; None if there is none, or if it is over."""
    return Deployment.objects.filter(id=deployment_id, status__in=ACTIVE).values_list("owner_id", flat=True).first()


def count_queued(owner_id: uuid.UUID) -> int:
    """How many of the owner's deployments wait for a worker or for their device."""
    return Deployment.objects.filter(owner_id=owner_id, status=DeploymentStatus.QUEUED).count()


def missing_part(deployment_id: uuid.UUID) -> str:
    """Which of model, device and account a deployment has lost, in a sentence; empty if none, or if it is gone."""
    deployment = (
        Deployment.objects.select_related("model", "device", "owner")
        .only("model__deleted_at", "device__deleted_at", "owner__is_active")
        .filter(pk=deployment_id)
        .first()
    )
    if deployment is None:
        return ""
    if deployment.model.deleted_at is not None:
        return "The model was deleted."
    if deployment.device.deleted_at is not None:
        return "The device was unpaired."
    return "" if deployment.owner.is_active else "The account is disabled."
