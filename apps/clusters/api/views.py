"""The routes of clusters and their members. Requests to a cluster are carried by `apps.proxy`."""

from collections.abc import Sequence
from typing import Any, ClassVar

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.clusters import selectors, services
from apps.clusters.api.serializers import (
    ClusterBody,
    ClusterSerializer,
    MemberBody,
    MemberSerializer,
    shown,
    shown_member,
)
from apps.clusters.models import Cluster
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404, ordering_field
from apps.common.http.responses import ok
from apps.devices.selectors import device_of
from apps.tunnels import registry


def render(clusters: Sequence[Cluster]) -> list[Any]:
    """Clusters as JSON, with the registry's word on each member: one call to Redis for all."""
    devices = {str(member.device_id) for cluster in clusters for member in cluster.members.all()}
    entries = registry.lookup(sorted(devices)) if devices else {}
    facts: Any = [shown(cluster, entries) for cluster in clusters]
    return list(ClusterSerializer(facts, many=True).data)


class ClusterQuery(PageQuery):
    search = serializers.CharField(
        max_length=200, required=False, allow_blank=True, help_text="Part of the name; empty: all."
    )
    ordering = ordering_field("created_at", "updated_at", "name", default="-created_at")


class ClustersView(ApiView):
    query_classes: ClassVar = {"GET": ClusterQuery}

    @describe("Clusters", answer=ClusterSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own clusters with their members."""
        rows = selectors.clusters_of(self.user.pk, search=self.query.get("search", ""))
        return self.page(selectors.with_members(rows), render)

    @describe("Clusters", body=ClusterBody, answer=ClusterSerializer, status=201, errors=("CONFLICT",))
    def post(self, request: Request) -> Response:
        """Make an empty cluster."""
        cluster = services.create_cluster(
            actor=self.actor, owner_id=self.user.pk, now=timezone.now(), **self.body(ClusterBody)
        )
        return ok(render([cluster])[0], status=201)


class OneClusterView(ApiView):
    """Whose path names a cluster of the user."""

    target: Cluster

    def load(self, request: Request, **kwargs: str) -> Cluster:
        return selectors.cluster_of(self.user.pk, id_or_404(kwargs["id"]))


class ClusterView(OneClusterView):
    @describe("Clusters", answer=ClusterSerializer)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """One cluster."""
        return ok(render([self.target])[0])

    @describe("Clusters", body=ClusterBody, answer=ClusterSerializer, errors=("CONFLICT",))
    def patch(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Rename a cluster; a body that names nothing changes nothing."""
        owner_id, changes = self.user.pk, self.body(ClusterBody, partial=True)
        if changes:
            services.rename_cluster(
                actor=self.actor, owner_id=owner_id, cluster_id=self.target.id, now=timezone.now(), **changes
            )
        return ok(render([selectors.cluster_of(owner_id, self.target.id)])[0])

    @describe("Clusters")
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Delete a cluster. Its devices stay."""
        services.delete_cluster(actor=self.actor, owner_id=self.user.pk, cluster_id=self.target.id, now=timezone.now())
        return ok(None)


class MemberView(OneClusterView):
    """Whose path names a device of the user as well."""

    def load(self, request: Request, **kwargs: str) -> Cluster:
        cluster = super().load(request, **kwargs)
        device_of(self.user.pk, id_or_404(kwargs["device_id"]))
        return cluster

    @describe("Clusters", body=MemberBody, answer=MemberSerializer, errors=("CONFLICT",))
    def put(self, request: Request, id: str, device_id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Have a device serve the cluster, or change its weight."""
        member = services.put_member(
            actor=self.actor,
            owner_id=self.user.pk,
            cluster_id=self.target.id,
            device_id=id_or_404(device_id),
            now=timezone.now(),
            **self.body(MemberBody),
        )
        entries = registry.lookup([str(member.device_id)])
        return ok(MemberSerializer(shown_member(member, entries)).data)

    @describe("Clusters")
    def delete(self, request: Request, id: str, device_id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Take a device out of the cluster."""
        services.remove_member(
            actor=self.actor,
            owner_id=self.user.pk,
            cluster_id=self.target.id,
            device_id=id_or_404(device_id),
            now=timezone.now(),
        )
        return ok(None)
