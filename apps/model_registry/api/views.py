"""The model routes."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, ClassVar

from django.conf import settings
from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404, ordering_field
from apps.common.http.responses import ok
from apps.common.moments import moment
from apps.model_registry import selectors, services
from apps.model_registry.api.serializers import (
    DownloadAnswer,
    FinalizeBody,
    InitAnswer,
    InitBody,
    ModelChangeBody,
    ModelSerializer,
    shown,
    shown_upload,
)
from apps.model_registry.models import AIModel, ModelSource, ModelStatus


def base_url(request: Request) -> str:
    """Our API as the caller reaches it. In production the setting decides: a balancer may not tell its scheme."""
    if settings.VISIONA["ENV"] == "production":
        return str(settings.VISIONA["PUBLIC_URL"])
    return f"{request.scheme}://{request.get_host()}"


class ModelQuery(PageQuery):
    owner = serializers.ChoiceField(
        choices=["mine", "builtin", "all"], default="mine", help_text="`all`: own and built-in ones."
    )
    chip = serializers.CharField(max_length=64, required=False, help_text="One of its chips, exactly.")
    source = serializers.ChoiceField(choices=ModelSource.choices, required=False)  # type: ignore[assignment]  # a field
    status = serializers.ChoiceField(choices=ModelStatus.choices, required=False)
    search = serializers.CharField(
        max_length=200,
        required=False,
        allow_blank=True,
        help_text="Part of name, version, description or file name; empty: all.",
    )
    ordering = ordering_field("created_at", "updated_at", "name", "size", default="-created_at")


class ModelsView(ApiView):
    query_classes: ClassVar = {"GET": ModelQuery}

    @describe("Models", answer=ModelSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own models; with `owner` the built-in ones too."""
        rows = selectors.filter_models(
            self.user.pk,
            owner=self.query["owner"],
            chip=self.query.get("chip", ""),
            source=self.query.get("source", ""),
            status=self.query.get("status", ""),
            search=self.query.get("search", ""),
        )
        named = rows.values_list(*selectors.MODEL_COLUMNS, named=True)
        return self.page(named, lambda found: [shown(row) for row in found])


class InitView(ApiView):
    @describe(
        "Models",
        body=InitBody,
        answer=InitAnswer,
        status=201,
        errors=("CONFLICT", "PAYLOAD_TOO_LARGE", "QUOTA_EXCEEDED"),
    )
    def post(self, request: Request) -> Response:
        """Begin an upload: a pending model, and where to PUT its bytes; then `finalize`.

        One that is pending already under this name and version begins anew, and keeps its id.
        """
        given = self.body(InitBody)
        size, sha256 = given.pop("size"), given.pop("sha256", "")
        given.setdefault("format", format_of(given["filename"]))
        model, upload = services.begin_upload(
            actor=self.actor,
            owner_id=self.user.pk,
            facts=services.Facts(**given),
            size=size,
            sha256=sha256,
            base_url=base_url(request),
            now=timezone.now(),
        )
        return ok({"model": shown(model), "upload": shown_upload(upload)}, status=201)


def format_of(filename: str) -> str:
    """What the end of a file's name says of its format: `nef` of `a.nef`; empty if it says nothing usable."""
    ending = PurePosixPath(filename).suffix[1:].lower()
    return ending if ending.isascii() and ending.isalnum() and len(ending) <= 32 else ""


class OneModelView(ApiView):
    """Whose path names a model that the user may read."""

    target: AIModel

    def load(self, request: Request, **kwargs: str) -> AIModel:
        return selectors.model_of(self.user.pk, id_or_404(kwargs["id"]))

    def named(self) -> dict[str, Any]:
        """What every service of one own model is told."""
        return {
            "actor": self.actor,
            "owner_id": self.user.pk,
            "model_id": self.target.id,
            "now": timezone.now(),
        }


class ModelView(OneModelView):
    @describe("Models", answer=ModelSerializer)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """One model, own or built-in."""
        return ok(shown(self.target))

    @describe("Models", body=ModelChangeBody, answer=ModelSerializer, errors=("CONFLICT", "FORBIDDEN"))
    def patch(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Change what is said of an own model; its bytes stay."""
        return ok(shown(services.change_model(changes=self.body(ModelChangeBody), **self.named())))

    @describe("Models", errors=("FORBIDDEN",))
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Delete an own model: its name is free at once, its bytes go after 30 days."""
        services.delete_model(**self.named())
        return ok(None)


class FinalizeView(OneModelView):
    @describe("Models", body=FinalizeBody, answer=ModelSerializer, later=202, errors=("INVALID_STATE", "FORBIDDEN"))
    def post(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Check the uploaded bytes: presence, size, SHA-256. The model is ready then; again: the same answer.

        What takes longer than 10 s is answered 202 with the model in status `checking`: call again to be told the end.
        """
        given = self.body(FinalizeBody)
        parts = [(part["number"], part["etag"]) for part in given["parts"]] if "parts" in given else None
        model = services.finalize(parts=parts, **self.named())
        return ok(shown(model), status=202 if model.status == ModelStatus.CHECKING else 200)


class DownloadView(OneModelView):
    @describe("Models", answer=DownloadAnswer, errors=("INVALID_STATE",))
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Where to fetch the bytes of a ready model."""
        download = services.allow_download(
            actor=self.actor,
            user_id=self.user.pk,
            model_id=self.target.id,
            base_url=base_url(request),
            now=timezone.now(),
        )
        return ok({"url": download.url, "expires_at": moment(download.expires_at)})
