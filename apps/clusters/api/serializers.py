"""What the cluster routes take and answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from apps.clusters.models import MAX_WEIGHT, MIN_WEIGHT, Cluster, ClusterMember
from apps.common.api.fields import PlainField, WholeField
from apps.devices.models import LinkStatus
from apps.tunnels.registry import Entry


class ClusterBody(serializers.Serializer[Any]):
    name = PlainField(max_length=200)


class MemberBody(serializers.Serializer[Any]):
    weight = WholeField(
        min_value=MIN_WEIGHT,
        max_value=MAX_WEIGHT,
        default=MIN_WEIGHT,
        help_text="Its part of the work, by the others'.",
    )


class MemberSerializer(serializers.Serializer[Any]):
    device_id = serializers.UUIDField()
    name = serializers.CharField(help_text="The device's.")
    weight = serializers.IntegerField(min_value=MIN_WEIGHT, max_value=MAX_WEIGHT)
    link_status = serializers.ChoiceField(choices=LinkStatus.choices, help_text="The registry's word.")


class ClusterSerializer(serializers.ModelSerializer[Cluster]):
    members = MemberSerializer(many=True, help_text="Those that are paired, in the order in which they came.")

    class Meta:
        model = Cluster
        fields = ("id", "name", "members", "created_at", "updated_at")


def shown_member(member: ClusterMember, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """A member as MemberSerializer describes it; `entries` are the registry's of those that are online."""
    online = str(member.device_id) in entries
    return {
        "device_id": member.device_id,
        "name": member.device.name,
        "weight": member.weight,
        "link_status": LinkStatus.ONLINE if online else LinkStatus.OFFLINE,
    }


def shown(cluster: Cluster, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """A cluster that was read with its members, as ClusterSerializer describes it."""
    return {
        "id": cluster.id,
        "name": cluster.name,
        "members": [shown_member(member, entries) for member in cluster.members.all()],
        "created_at": cluster.created_at,
        "updated_at": cluster.updated_at,
    }
