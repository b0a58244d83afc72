"""The deployment routes."""

from __future__ import annotations

from typing import ClassVar

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.fields import UuidField
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404, ordering_field
from apps.common.http.responses import ok
from apps.deployments import selectors, services
from apps.deployments.api.serializers import DeployBody, DeploymentSerializer, shown
from apps.deployments.models import Deployment, DeploymentStatus
from apps.model_registry.models import AIModel
from apps.model_registry.selectors import model_of


class DeployView(ApiView):
    target: AIModel

    def load(self, request: Request, **kwargs: str) -> AIModel:
        return model_of(self.user.pk, id_or_404(kwargs["id"]))

    @describe(
        "Deployments", body=DeployBody, answer=DeploymentSerializer, status=201, errors=("CONFLICT", "INVALID_STATE")
    )
    def post(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Send the model to a device, which may be offline for now. It is done in the background: look at the answer's
        `id` again."""
        deployment = services.begin_deployment(
            actor=self.actor,
            owner_id=self.user.pk,
            model_id=self.target.id,
            now=timezone.now(),
            **self.body(DeployBody),
        )
        return ok(shown(deployment), status=201)


class DeploymentQuery(PageQuery):
    model_id = UuidField(required=False)
    device_id = UuidField(required=False)
    status = serializers.ChoiceField(choices=DeploymentStatus.choices, required=False)
    ordering = ordering_field("created_at", "updated_at", default="-created_at")


class DeploymentsView(ApiView):
    query_classes: ClassVar = {"GET": DeploymentQuery}

    @describe("Deployments", answer=DeploymentSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own deployments, finished ones too."""
        rows = selectors.filter_deployments(
            self.user.pk,
            model_id=self.query.get("model_id"),
            device_id=self.query.get("device_id"),
            status=self.query.get("status", ""),
        )
        return self.page(rows, lambda found: [shown(each) for each in found])


class DeploymentView(ApiView):
    target: Deployment

    def load(self, request: Request, **kwargs: str) -> Deployment:
        return selectors.deployment_of(self.user.pk, id_or_404(kwargs["id"]))

    @describe("Deployments", answer=DeploymentSerializer)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """How far a deployment is."""
        return ok(shown(self.target))

    @describe("Deployments", errors=("INVALID_STATE",))
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Cancel it: two seconds later no byte is sent. A later deployment goes on from what arrived."""
        services.cancel_deployment(
            actor=self.actor, owner_id=self.user.pk, deployment_id=self.target.id, now=timezone.now()
        )
        return ok(None)
