"""What changes a cluster: making, renaming, deleting, and who serves it with which weight."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from apps.audit.services import record
from apps.clusters.models import MIN_WEIGHT, Cluster, ClusterMember
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found
from apps.devices.models import Device

UNIQUE_NAME: Final = "clusters_owner_name_unique"
MAX_MEMBERS: Final = 256
"""How many devices a cluster may have: each request looks at all of them."""


def create_cluster(*, actor: Actor, owner_id: uuid.UUID, name: str, now: dt.datetime) -> Cluster:
    """An empty cluster. Raises DomainError CONFLICT for a name that another cluster of the owner has."""
    try:
        with transaction.atomic():
            cluster = Cluster.objects.create(owner_id=owner_id, name=name)
            _audit(actor, "cluster.create", cluster.id, {"name": name}, now)
    except IntegrityError as error:
        raise _name_taken(error) from error
    return cluster


def rename_cluster(*, actor: Actor, owner_id: uuid.UUID, cluster_id: uuid.UUID, name: str, now: dt.datetime) -> Cluster:
    """Raises DomainError NOT_FOUND, CONFLICT."""
    try:
        with transaction.atomic():
            cluster = _locked(cluster_id, owner_id)
            cluster.name = name
            cluster.save(update_fields=["name", "updated_at"])
            _audit(actor, "cluster.change", cluster.id, {"name": name}, now)
    except IntegrityError as error:
        raise _name_taken(error) from error
    return cluster


@transaction.atomic
def ensure_cluster(
    *, actor: Actor, owner_id: uuid.UUID, name: str, device_ids: Iterable[uuid.UUID], now: dt.datetime
) -> Cluster:
    """The owner's cluster of this name; made with these devices, each of weight 1, if there is none."""
    found = Cluster.objects.filter(owner_id=owner_id, name=name).first()
    if found is not None:
        return found
    try:
        cluster = create_cluster(actor=actor, owner_id=owner_id, name=name, now=now)
    except DomainError:  # another was quicker
        return Cluster.objects.get(owner_id=owner_id, name=name)
    for device_id in device_ids:
        put_member(
            actor=actor, owner_id=owner_id, cluster_id=cluster.id, device_id=device_id, weight=MIN_WEIGHT, now=now
        )
    return cluster


@transaction.atomic
def delete_cluster(*, actor: Actor, owner_id: uuid.UUID, cluster_id: uuid.UUID, now: dt.datetime) -> None:
    """Its devices stay as they are. Raises DomainError NOT_FOUND."""
    cluster = _locked(cluster_id, owner_id)
    cluster.delete()
    _audit(actor, "cluster.delete", cluster_id, {"name": cluster.name}, now)


@transaction.atomic
def put_member(
    *,
    actor: Actor,
    owner_id: uuid.UUID,
    cluster_id: uuid.UUID,
    device_id: uuid.UUID,
    weight: int,
    now: dt.datetime,
) -> ClusterMember:
    """Have a device serve the cluster with `weight` (1 to 100), or change its weight.

    Raises DomainError NOT_FOUND for a cluster or device that is not the owner's, CONFLICT beyond MAX_MEMBERS.
    """
    cluster = _locked(cluster_id, owner_id)
    # Shared with unpairing, which locks it too: one that is unpaired meanwhile does not come in.
    device = Device.objects.select_for_update(no_key=True).filter(id=device_id, owner_id=owner_id, deleted_at=None)
    found = device.first()
    if found is None:
        raise not_found()
    member, created = ClusterMember.objects.get_or_create(cluster=cluster, device=found, defaults={"weight": weight})
    if created and ClusterMember.objects.filter(cluster=cluster).count() > MAX_MEMBERS:
        raise DomainError("CONFLICT", _("A cluster may have %(count)d members.") % {"count": MAX_MEMBERS})
    if member.weight != weight:
        member.weight = weight
        member.save(update_fields=["weight", "updated_at"])
    _audit(actor, "cluster.member.set", cluster.id, {"device": str(device_id), "weight": weight}, now)
    return member


@transaction.atomic
def remove_member(
    *, actor: Actor, owner_id: uuid.UUID, cluster_id: uuid.UUID, device_id: uuid.UUID, now: dt.datetime
) -> None:
    """Raises DomainError NOT_FOUND if the device does not serve the cluster."""
    cluster = _locked(cluster_id, owner_id)
    gone, _rows = ClusterMember.objects.filter(cluster=cluster, device_id=device_id, device__deleted_at=None).delete()
    if not gone:
        raise not_found()
    _audit(actor, "cluster.member.remove", cluster.id, {"device": str(device_id)}, now)


def _locked(cluster_id: uuid.UUID, owner_id: uuid.UUID) -> Cluster:
    """The cluster, locked until the transaction ends. Raises DomainError NOT_FOUND."""
    cluster = Cluster.objects.select_for_update(no_key=True).filter(id=cluster_id, owner_id=owner_id).first()
    if cluster is None:
        raise not_found()
    return cluster


def _name_taken(error: IntegrityError) -> Exception:
    """The refusal for a name that is taken; any other fault as it is."""
    if UNIQUE_NAME not in str(error):
        return error
    return DomainError("CONFLICT", details={"name": [_("You already have a cluster of this name.")]})


def _audit(actor: Actor, action: str, cluster_id: uuid.UUID, detail: Mapping[str, Any], now: dt.datetime) -> None:
    record(actor=actor, action=action, object_type="cluster", object_id=str(cluster_id), detail=detail, now=now)
