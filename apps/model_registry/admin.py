"""Models for operators: to find and to read. They are changed through the API, and removed by deleting them there."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from unfold.decorators import display

from apps.common.admin import ReadOnlyAdmin
from apps.model_registry.models import AIModel


@admin.register(AIModel)
class AIModelAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = (
        "name", "version", "owner", "state", "source", "megabytes", "created_at", "deleted_at",
    )  # fmt: skip
    list_filter: ClassVar[Any] = ("status", "source", ("deleted_at", admin.EmptyFieldListFilter))
    list_select_related: ClassVar[Any] = ("owner",)
    search_fields: ClassVar[Any] = ("name", "version", "filename", "owner__email", "id", "sha256", "faa_object_key")
    ordering: ClassVar[Any] = ("-created_at",)
    # `upload_id` is left out: with the bucket's credentials it would let one write into an upload.
    fields: ClassVar[Any] = (
        "id", "owner", "name", "version", "description", "filename", "format", "chips", "source", "status", "size",
        "sha256", "object_key", "faa_object_key", "upload_begun_at", "created_at", "updated_at", "deleted_at",
    )  # fmt: skip
    readonly_fields: ClassVar[Any] = fields

    @display(
        description="status", label={"ready": "success", "pending": "warning", "checking": "info", "failed": "danger"}
    )  # type: ignore[untyped-decorator]  # unfold is untyped
    def state(self, model: AIModel) -> str:
        return str(model.status)

    @display(description="MB", ordering="size")  # type: ignore[untyped-decorator]  # unfold is untyped
    def megabytes(self, model: AIModel) -> str:
        return f"{model.size / (1 << 20):.1f}"
