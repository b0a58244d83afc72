"""What the deployment routes take and answer."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.common.api.fields import UuidField
from apps.deployments.models import Deployment, DeploymentStatus


class DeployBody(serializers.Serializer[Any]):
    device_id = UuidField()
    force = serializers.BooleanField(
        default=False, help_text="Send it although its `chips` do not name the device's, or an accelerator's on it."
    )


class DeploymentError(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="One of the error codes.")
    message = serializers.CharField()


class DeploymentSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    model_id = serializers.UUIDField()
    device_id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=DeploymentStatus.choices)
    bytes_done = serializers.IntegerField(help_text="Falls after an interruption to what the device has safely.")
    bytes_total = serializers.IntegerField()
    error = DeploymentError(allow_null=True, help_text="Why it failed; while it is queued, what it waits for.")
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


def shown(deployment: Deployment) -> Any:
    """The deployment as DeploymentSerializer describes it."""
    code = deployment.error_code
    facts = {
        "id": deployment.id,
        "model_id": deployment.model_id,
        "device_id": deployment.device_id,
        "status": deployment.status,
        "bytes_done": deployment.bytes_done,
        "bytes_total": deployment.bytes_total,
        "error": {"code": code, "message": deployment.error_message} if code else None,
        "created_at": deployment.created_at,
        "started_at": deployment.started_at,
        "finished_at": deployment.finished_at,
    }
    return DeploymentSerializer(facts).data
