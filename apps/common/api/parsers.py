"""The one body format of the control plane: strict JSON of bounded size, chunked bodies included."""

from collections.abc import Mapping
from typing import IO, Any, Final

import orjson
from django.http import UnreadablePostError
from django.utils.translation import gettext as _
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.utils.encoders import JSONEncoder

from apps.common.errors import DomainError

MAX_JSON_BYTES: Final = 1 << 20
"""A control-plane body is a handful of fields; a mebibyte is far above any of them."""

MAX_JSON_VALUES: Final = 50_000
"""Commas and opening brackets at most: a mebibyte of `{},` takes thirty mebibytes as Python objects. The parts of the
largest upload need three fifths of this."""

_ENCODER: Final = JSONEncoder()
_OPTIONS: Final = orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_DATACLASS  # moments and data classes as DRF writes them


class StrictJsonParser(BaseParser):
    """UTF-8 JSON of at most MAX_JSON_BYTES and MAX_JSON_VALUES. Raises DomainError BAD_REQUEST, or PAYLOAD_TOO_LARGE
    before reading on."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        if announced(parser_context) > MAX_JSON_BYTES:
            raise _too_large()  # a client that waits for `100 Continue`, or sends slowly, need not send it all first
        try:
            raw = stream.read(MAX_JSON_BYTES + 1)
        except OSError as error:  # as Django, past whose own stream a body in chunks is read
            raise UnreadablePostError(*error.args) from error
        if len(raw) > MAX_JSON_BYTES:
            raise _too_large()
        if len(raw) > MAX_JSON_VALUES and sum(raw.count(mark) for mark in b",[{") > MAX_JSON_VALUES:
            raise DomainError(
                "PAYLOAD_TOO_LARGE", _("A JSON body may have %(values)d values at most.") % {"values": MAX_JSON_VALUES}
            )
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise DomainError("BAD_REQUEST", _("The body is not valid JSON.")) from None


def announced(parser_context: Mapping[str, Any] | None) -> int:
    """The request's Content-Length in bytes; 0 without one (a body in chunks)."""
    request = (parser_context or {}).get("request")
    length = request.META.get("CONTENT_LENGTH", "") if request is not None else ""
    return int(length) if length.isdecimal() else 0


def _too_large() -> DomainError:
    return DomainError(
        "PAYLOAD_TOO_LARGE", _("A JSON body may have %(bytes)d bytes at most.") % {"bytes": MAX_JSON_BYTES}
    )


class ApiRequest(Request):
    """DRF's request, which also reads bodies that come in chunks without a Content-Length.

    Django bounds the stream by Content-Length and so sees nothing of a chunked body; the server (gunicorn) ends its
    `wsgi.input` where the last chunk ends, thus it may be read directly.
    """

    def _load_stream(self) -> None:
        meta = self._request.META
        if "CONTENT_LENGTH" not in meta and meta.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
            self._stream = meta["wsgi.input"]
            return
        super()._load_stream()  # type: ignore[misc]  # the stubs leave DRF's private methods out


class JsonOnly(BaseContentNegotiation):
    """The API answers JSON whatever `Accept` says, and `?format=` means nothing."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == kind), None)

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class EnvelopeRenderer(JSONRenderer):
    """JSON as it is, with no indentation asked for by `Accept`."""

    charset = None

    def get_indent(self, accepted_media_type: str, renderer_context: Mapping[str, Any]) -> int | None:
        return None

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Render by orjson, in a fifth of DRF's time; by DRF's encoder what orjson refuses (integers above 64 bits)."""
        if data is None:
            return b""
        try:
            raw = orjson.dumps(data, default=_ENCODER.default, option=_OPTIONS)
        except orjson.JSONEncodeError:
            whole: bytes = super().render(data, accepted_media_type, renderer_context)
            return whole
        if b"\xe2\x80" in raw:  # as DRF: line separators are escaped, so that it is JavaScript as well
            raw = raw.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        return raw
