"""Clusters: devices of one owner that serve the same requests, each by its weight (data.md)."""

from typing import Final

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from apps.common.models import BaseModel
from apps.devices.models import Device

MIN_WEIGHT: Final = 1
MAX_WEIGHT: Final = 100


class Cluster(BaseModel):
    """A name for devices of one owner; its members are `ClusterMember`s."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="clusters")
    name = models.CharField(max_length=200)

    class Meta:
        db_table = "clusters"
        ordering = ("-created_at",)
        constraints = (models.UniqueConstraint(fields=("owner", "name"), name="clusters_owner_name_unique"),)

    def __str__(self) -> str:
        return self.name


class ClusterMember(BaseModel):
    """A device that serves a cluster. The row stays while the device is unpaired; nothing shows or asks it then."""

    cluster = models.ForeignKey(Cluster, on_delete=models.CASCADE, related_name="members")
    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="cluster_members")
    weight = models.PositiveSmallIntegerField(
        default=1, validators=[MinValueValidator(MIN_WEIGHT), MaxValueValidator(MAX_WEIGHT)]
    )

    class Meta:
        db_table = "cluster_members"
        ordering = ("created_at",)
        constraints = (
            models.UniqueConstraint(fields=("cluster", "device"), name="cluster_members_cluster_device_unique"),
            models.CheckConstraint(
                condition=models.Q(weight__gte=MIN_WEIGHT, weight__lte=MAX_WEIGHT), name="cluster_members_weight_range"
            ),
        )

    def __str__(self) -> str:
        return f"{self.cluster_id}: {self.device_id} (weight {self.weight})"
