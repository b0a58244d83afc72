"""The conversion routes: its owner's, and the one by which the converter reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any, ClassVar, Final

import orjson
from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.fields import UuidField
from apps.common.api.parsers import announced
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, PublicApiView, id_or_404, ordering_field
from apps.common.errors import DomainError
from apps.common.http.responses import ok
from apps.converter import reports, selectors, services
from apps.converter.api.serializers import (
    ConversionBody,
    ConversionSerializer,
    ReportAnswer,
    ReportBody,
)
from apps.converter.models import Conversion, ConversionStatus
from apps.model_registry.api.serializers import shown_upload
from apps.model_registry.api.views import format_of
from apps.webhooks.signing import HEADER

MAX_REPORT_BYTES: Final = 1 << 20


class ConversionQuery(PageQuery):
    status = serializers.ChoiceField(choices=ConversionStatus.choices, required=False)
    model_id = UuidField(required=False, help_text="The model that they are made of.")
    ordering = ordering_field("created_at", "updated_at", default="-created_at")


class ConversionsView(ApiView):
    query_classes: ClassVar = {"GET": ConversionQuery}

    @describe("Converter", answer=ConversionSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own conversions."""
        rows = selectors.filter_conversions(
            self.user.pk, status=self.query.get("status", ""), model_id=self.query.get("model_id")
        )
        return self.page(rows, lambda found: list(ConversionSerializer(found, many=True).data))

    @describe(
        "Converter",
        body=ConversionBody,
        answer=ConversionSerializer,
        status=201,
        errors=("NOT_FOUND", "INVALID_STATE", "CONFLICT", "NOT_IMPLEMENTED"),
    )
    def post(self, request: Request) -> Response:
        """Have a model converted for a chip: a new model with `source=converted`. 501 where there is no converter."""
        conversion = services.create_conversion(
            actor=self.actor, owner_id=self.user.pk, now=timezone.now(), **self.body(ConversionBody)
        )
        return ok(ConversionSerializer(conversion).data, status=201)


class ConversionView(ApiView):
    target: Conversion

    def load(self, request: Request, **kwargs: str) -> Conversion:
        return selectors.conversion_of(self.user.pk, id_or_404(kwargs["id"]))

    @describe("Converter", answer=ConversionSerializer)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """One conversion."""
        return ok(ConversionSerializer(self.target).data)

    @describe("Converter", errors=("INVALID_STATE",))
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Cancel a conversion that is under way."""
        services.cancel_conversion(
            actor=self.actor, owner_id=self.user.pk, conversion_id=self.target.id, now=timezone.now()
        )
        return ok(None)


class RawParser(BaseParser):
    """The body as it came: the signature is of its bytes. Raises DomainError PAYLOAD_TOO_LARGE."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, bytes]:
        large = announced(parser_context) > MAX_REPORT_BYTES  # then nobody waits for it
        raw: bytes = b"" if large else stream.read(MAX_REPORT_BYTES + 1)
        if large or len(raw) > MAX_REPORT_BYTES:
            raise DomainError("PAYLOAD_TOO_LARGE", _("A report may have %d bytes at most.") % MAX_REPORT_BYTES)
        return {"raw": raw}


class CallbackView(PublicApiView):
    """Whoever signs with the converter's secret is the converter; nobody logs in here."""

    parser_classes = (RawParser,)

    @describe(
        "Converter",
        body=ReportBody,
        answer=ReportAnswer,
        errors=("SIGNATURE_INVALID", "INVALID_STATE"),
        public=True,
        parameters=[
            OpenApiParameter(
                HEADER,
                str,
                OpenApiParameter.HEADER,
                required=True,
                description='`t=<unix>,v1=<hex HMAC-SHA256 of "t.body">`, no older than 300 s, each used once.',
            )
        ],
    )
    def post(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """What the converter reports of a conversion (docs/converter.md)."""
        now = timezone.now()
        raw: bytes = dict(request.data).get("raw", b"")
        reports.authenticate(signature=request.headers.get(HEADER, ""), body=raw, now=now)
        actor = replace(self.actor, user_id="", label=services.CONVERTER.label)
        conversion_id, report = id_or_404(id), _report(raw)
        if report.get("id", conversion_id) != conversion_id:
            raise DomainError("SIGNATURE_INVALID", _("This report is of another conversion."))
        answer: dict[str, Any] = {}
        if report["status"] == "running":
            conversion = reports.running(conversion_id=conversion_id, bytes_done=report["bytes_done"], now=now)
            answer["source"] = services.source_of(conversion, now)
        elif report["status"] == "converted":
            conversion, upload = reports.converted(conversion_id=conversion_id, made=_made(report), now=now)
            answer["upload"] = shown_upload(upload)
        elif report["status"] == "done":
            parts = [(part["number"], part["etag"]) for part in report["parts"]] if "parts" in report else None
            conversion = reports.done(actor=actor, conversion_id=conversion_id, parts=parts, now=now)
            if conversion.result_id is not None:  # it may be purged by now
                answer["model_id"] = str(conversion.result_id)
        else:
            conversion = reports.failed(actor=actor, conversion_id=conversion_id, error=report["error"], now=now)
        return ok({"status": conversion.status, **answer})


def _report(raw: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise DomainError("BAD_REQUEST", _("The body is not valid JSON.")) from None
    form = ReportBody(data=given)
    form.is_valid(raise_exception=True)
    values: dict[str, Any] = form.validated_data
    return values


def _made(report: dict[str, Any]) -> reports.Made:
    return reports.Made(
        filename=report["filename"],
        format=report.get("format", format_of(report["filename"])),
        size=report["size"],
        sha256=report.get("sha256") or "",
    )
