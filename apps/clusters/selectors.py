"""Reads of clusters, scoped to their owner."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import Prefetch, QuerySet

from apps.clusters.models import Cluster, ClusterMember
from apps.common.errors import not_found


@dataclass(frozen=True, slots=True)
class Share:
    """A device of a cluster and what part of the work it takes, beside the others' weights."""

    device_id: str
    weight: int


def clusters_of(owner_id: uuid.UUID, *, search: str = "") -> QuerySet[Cluster]:
    """The user's clusters, whose name contains `search`; two queries with `members_shown`."""
    rows = Cluster.objects.filter(owner_id=owner_id)
    return rows.filter(name__icontains=search) if search else rows


def with_members(rows: QuerySet[Cluster]) -> QuerySet[Cluster]:
    """The same with the members that are still paired, in the order in which they came: one query for all."""
    members = ClusterMember.objects.filter(device__deleted_at=None).select_related("device").order_by("created_at")
    return rows.prefetch_related(Prefetch("members", queryset=members))


def cluster_of(owner_id: uuid.UUID, cluster_id: uuid.UUID) -> Cluster:
    """One of them with its members. Raises DomainError NOT_FOUND, for another user's too."""
    cluster = with_members(clusters_of(owner_id)).filter(id=cluster_id).first()
    if cluster is None:
        raise not_found()
    return cluster


def shares_of(owner_id: uuid.UUID, cluster_id: uuid.UUID) -> list[Share]:
    """The paired members of a cluster, by device id: one query. Raises DomainError NOT_FOUND."""
    columns = ("members__device_id", "members__weight", "members__device__deleted_at")
    rows: list[tuple[Any, ...]] = list(  # outer joins: a cluster without members is one row of nulls
        clusters_of(owner_id).filter(id=cluster_id).order_by("members__device_id").values_list(*columns)
    )
    if not rows:
        raise not_found()
    return [Share(str(device), weight) for device, weight, gone in rows if device is not None and gone is None]
