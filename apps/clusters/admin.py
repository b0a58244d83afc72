"""Clusters for operators: whose they are, and who serves them. Nothing is changed here."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from unfold.admin import TabularInline
from unfold.decorators import display

from apps.clusters.models import Cluster, ClusterMember
from apps.common.admin import ReadOnlyAdmin


class MemberInline(TabularInline):  # type: ignore[misc]  # unfold is untyped
    model = ClusterMember
    extra = 0
    can_delete = False
    hide_title = True  # the row tells which device; its title would be two ids
    fields: ClassVar[Any] = ("device", "weight", "created_at")
    readonly_fields: ClassVar[Any] = fields

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[ClusterMember]:
        rows: QuerySet[ClusterMember] = super().get_queryset(request)
        return rows.filter(device__deleted_at=None).select_related("device")


@admin.register(Cluster)
class ClusterAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("name", "owner", "devices", "created_at")
    list_select_related: ClassVar[Any] = ("owner",)
    list_filter: ClassVar[Any] = ("created_at",)
    search_fields: ClassVar[Any] = ("name", "owner__email", "id")
    ordering: ClassVar[Any] = ("-created_at",)
    fields: ClassVar[Any] = ("id", "name", "owner", "created_at", "updated_at")
    inlines: ClassVar[Any] = (MemberInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Cluster]:
        rows: QuerySet[Cluster] = super().get_queryset(request)
        return rows.annotate(paired=Count("members", filter=Q(members__device__deleted_at=None)))

    @display(description="Devices", ordering="paired")  # type: ignore[untyped-decorator]  # unfold is untyped
    def devices(self, cluster: Any) -> int:
        return int(cluster.paired)
