"""`/storage/{signed}`: the bytes of models on the local store. The signed path is the credential.

Neither handler looks at the database: who may send or fetch what was decided when the URL was signed.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Final

from django.conf import settings
from django.http.response import HttpResponseBase
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.schema import describe, error_responses
from apps.common.api.views import PublicApiView
from apps.common.cores import cores
from apps.common.errors import DomainError
from apps.common.http.responses import ok
from apps.storage.api import room
from apps.storage.api.conditions import evaluate
from apps.storage.api.downloads import answer
from apps.storage.base import Mismatch, TooLarge
from apps.storage.local import Gone
from apps.storage.services import local_store
from apps.storage.signing import Forged, Grant, verify

_RANGES: Final = [
    OpenApiParameter("Range", OpenApiTypes.STR, OpenApiParameter.HEADER, description="`bytes=…`, also several."),
    OpenApiParameter("If-Range", OpenApiTypes.STR, OpenApiParameter.HEADER, description="The ETag the part must have."),
    OpenApiParameter("If-None-Match", OpenApiTypes.STR, OpenApiParameter.HEADER, description="304 if it is the ETag."),
    OpenApiParameter("If-Match", OpenApiTypes.STR, OpenApiParameter.HEADER, description="412 if it is not the ETag."),
    OpenApiParameter(
        "If-Unmodified-Since", OpenApiTypes.STR, OpenApiParameter.HEADER, description="412 if it was changed since."
    ),
]
_CONDITIONS: Final = ("If-Match", "If-Unmodified-Since", "If-None-Match")
_BODY: Final[Any] = {"application/octet-stream": OpenApiTypes.BINARY}
_COMMON: Final = ("SIGNATURE_INVALID", "RATE_LIMITED", "INTERNAL_ERROR", "DATABASE_UNAVAILABLE", "OVERLOADED")


class StoredAnswer(serializers.Serializer[Any]):
    size = serializers.IntegerField(help_text="Bytes that have arrived.")
    sha256 = serializers.CharField(help_text="Of what has arrived, lower-case hex.")


class BrokenBody(Exception):
    """The client's bytes stopped before their end, or came too slowly."""


class BodySource:
    """A request's body as it comes; the server bounds it in time and ends it where it ends.

    Neither Django's nor DRF's stream is used: they know no chunked body.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        length = meta.get("CONTENT_LENGTH")
        self._input = meta["wsgi.input"]
        self._left = int(length) if length else None

    @property
    def announced(self) -> int | None:
        """Content-Length; None for a body in chunks."""
        return self._left

    def read(self, size: int, /) -> bytes:
        """The next piece, empty at the end. Raises BrokenBody."""
        if self._left is not None:
            size = min(size, self._left)
        try:
            piece: bytes = self._input.read(size) if size else b""
        except OSError as error:
            raise BrokenBody from error
        if self._left is not None:
            if size and not piece:
                raise BrokenBody
            self._left -= len(piece)
        return piece


class StorageView(PublicApiView):
    """`load` is the order of api.md for this route: the signature before everything but the method."""

    target: Grant

    def load(self, request: Request, **kwargs: str) -> Grant:
        secrets = settings.VISIONA["STORAGE_SIGNING_SECRET"]
        try:
            return verify(kwargs["signed"], secrets, method=request.method or "", now=time.time())
        except Forged:
            raise DomainError("SIGNATURE_INVALID") from None

    @extend_schema(operation_id="storage_upload", request=_BODY)
    @describe(
        "Models",
        answer=StoredAnswer,
        status=201,
        errors=("SIGNATURE_INVALID", "PAYLOAD_TOO_LARGE", "PRECONDITION_FAILED", "BAD_REQUEST", "REQUEST_TIMEOUT"),
        public=True,
    )
    def put(self, request: Request, signed: str) -> Response:
        """Send a model's bytes, as the answer of `init` says.

        May be sent again until the model is finalized: the last whole body counts, and half a body leaves nothing.
        A part alone (`Content-Range`) is 400: this is no place for uploads in pieces.
        """
        grant = self.target
        self._check_conditions(request, grant)
        source = BodySource(request._request.META)  # noqa: SLF001 - the plain request's environ
        if source.announced is not None and source.announced > grant.size:
            raise self._too_large(grant)
        room.enter(grant.owner)
        try:
            with cores.anywhere():  # hashing and writing are not Python's
                stored = local_store().receive(grant.key, source, limit=grant.size)
        except TooLarge:
            raise self._too_large(grant) from None
        except Gone:
            raise DomainError("SIGNATURE_INVALID") from None
        except BrokenBody:
            raise DomainError("BAD_REQUEST") from None
        finally:
            room.leave(grant.owner)
        sent = ok({"size": stored.size, "sha256": stored.sha256}, status=201)
        sent["ETag"] = f'"{stored.sha256}"'  # as the download has it, and as S3 answers a PUT
        return sent

    @extend_schema(
        operation_id="storage_download",
        tags=["Models"],
        auth=[],
        parameters=_RANGES,
        responses={
            (200, "application/octet-stream"): OpenApiTypes.BINARY,
            (206, "application/octet-stream"): OpenApiTypes.BINARY,
            304: OpenApiResponse(description="As the caller knows it already."),
            **error_responses(
                (*_COMMON, "RANGE_NOT_SATISFIABLE", "PRECONDITION_FAILED", "NOT_FOUND", "VALIDATION_ERROR")
            ),
        },
    )
    def get(self, request: Request, signed: str) -> HttpResponseBase:
        """Fetch a model's bytes, as the answer of `download` says; in part with `Range`."""
        grant = self.target
        try:
            file = local_store().open(grant.key)
        except Mismatch:
            raise DomainError("NOT_FOUND") from None
        try:
            room.enter(grant.owner)
        except DomainError:
            file.close()
            raise
        try:
            return answer(request._request, grant, file, partial(room.leave, grant.owner))  # noqa: SLF001 - not DRF's wrapper
        except BaseException:  # what did not become an answer is closed by nobody else
            file.close()
            room.leave(grant.owner)
            raise

    def head(self, request: Request, signed: str) -> HttpResponseBase:
        """As GET, without the bytes."""
        return self.get(request, signed)

    @staticmethod
    def _check_conditions(request: Request, grant: Grant) -> None:
        """Raises DomainError BAD_REQUEST for a part (RFC 9110 §14.5), PRECONDITION_FAILED."""
        if "Content-Range" in request.headers:
            raise DomainError("BAD_REQUEST", _("Send the whole file: a part (Content-Range) cannot be taken here."))
        if any(name in request.headers for name in _CONDITIONS):
            tag, modified = local_store().arrived(grant.key) or ("", 0)
            if evaluate("PUT", request.headers, f'"{tag}"' if tag else None, modified) == "failed":
                raise DomainError("PRECONDITION_FAILED")

    @staticmethod
    def _too_large(grant: Grant) -> DomainError:
        return DomainError("PAYLOAD_TOO_LARGE", details={"size": [_("At most %d bytes.") % grant.size]})
