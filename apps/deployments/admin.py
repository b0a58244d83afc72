"""Deployments for operators: what is on its way, how far, and why it failed. Nothing is changed here."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from unfold.decorators import display

from apps.common.admin import ReadOnlyAdmin
from apps.deployments.models import Deployment


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("created_at", "model", "device", "state", "progress", "error_code", "owner")
    list_filter: ClassVar[Any] = ("status", "error_code", "created_at")
    list_select_related: ClassVar[Any] = ("owner", "model", "device")
    search_fields: ClassVar[Any] = ("id", "model__name", "device__name", "device__serial", "owner__email")
    ordering: ClassVar[Any] = ("-created_at",)
    fields: ClassVar[Any] = (
        "id", "owner", "model", "device", "status", "bytes_done", "bytes_total", "error_code", "error_message",
        "attempts", "run", "beat_at", "moved_at", "request_id", "created_at", "started_at", "finished_at",
    )  # fmt: skip

    @display(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Status",
        label={"queued": "info", "sending": "info", "done": "success", "failed": "danger", "cancelled": "warning"},
    )
    def state(self, deployment: Deployment) -> str:
        return str(deployment.status)

    @display(description="Progress")  # type: ignore[untyped-decorator]  # unfold is untyped
    def progress(self, deployment: Deployment) -> str:
        return f"{100 * deployment.bytes_done // deployment.bytes_total} %"
