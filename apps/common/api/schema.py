"""The OpenAPI schema: one decorator a handler tells what api.md promises of every route.

    @describe("Devices", answer=DeviceSerializer, many=True)
    @describe("Devices", body=RenameBody, answer=DeviceSerializer, errors=("CONFLICT",))

What holds everywhere is added by itself: the envelope, 401 where a credential is needed, 404 where the path names an
object, 400, 413 and 415 where there is a body or a query, 429, 500 and 503; the query from the view's `query_classes`.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final, Literal, TypeVar

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers

from tunnel.contract import ERROR_STATUS

Handler = TypeVar("Handler", bound=Callable[..., Any])
Answer = type[serializers.Serializer[Any]] | dict[str, Any] | None

_EVERYWHERE: Final = ("RATE_LIMITED", "INTERNAL_ERROR", "DATABASE_UNAVAILABLE", "CACHE_UNAVAILABLE", "OVERLOADED")
_WITH_BODY: Final = ("BAD_REQUEST", "VALIDATION_ERROR", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE")
# drf-spectacular takes these dictionaries as they are, and declares plain names.
_LOGIN: Final[list[Any]] = [{"login": []}]
_NO_LOGIN: Final[list[Any]] = []
_PINGED: Final = frozenset({"DATABASE_UNAVAILABLE", "CACHE_UNAVAILABLE"})
_CHECKS: Final = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "description": "What `/healthz` found of each part.",
}
_ID_PARAMETERS: Final = ("id", "device_id")


class PageMeta(serializers.Serializer[Any]):
    total = serializers.IntegerField(help_text="Rows in all pages.")
    next = serializers.URLField(allow_null=True, help_text="The next page, absolute; null on the last.")
    previous = serializers.URLField(allow_null=True, help_text="The page before; null on the first.")


def describe(
    tag: str,
    *,
    answer: Answer = None,
    many: bool = False,
    status: int = 200,
    later: int | None = None,
    body: type[serializers.Serializer[Any]] | None = None,
    errors: Iterable[str] = (),
    public: bool = False,
    bare: type[serializers.Serializer[Any]] | None = None,
    **extra: Any,
) -> Callable[[Handler], Handler]:
    """Declares a handler in the schema.

    Args:
        tag: the group it stands in.
        answer: what `data` holds: a serializer class, a JSON schema, or None for null.
        many: a page of them, with `meta`.
        status: of success.
        later: the status of the same answer where the work goes on in the background; None if it never does.
        body: the JSON body, None for none.
        errors: codes beyond those that every such route has.
        public: needs no credential.
        bare: the whole answer, without the envelope (`/healthz` alone).
        extra: passed on to drf-spectacular's `extend_schema`.
    """
    codes = {*errors, *_EVERYWHERE, "VALIDATION_ERROR"}
    codes |= set(_WITH_BODY) if body is not None else set()
    codes |= set() if public else {"UNAUTHENTICATED"}
    responses: dict[Any, Any] = {status: OpenApiResponse(bare or _envelope(answer, many=many), description="Done.")}
    if later is not None:
        responses[later] = OpenApiResponse(_envelope(answer, many=many), description="Not done yet: ask again.")
    responses |= error_responses(codes)

    def declare(handler: Handler) -> Handler:
        declared: Handler = extend_schema(
            tags=[tag], request=body, responses=responses, auth=_NO_LOGIN if public else _LOGIN, **extra
        )(handler)
        return declared

    return declare


_STATUSES: Final = {"QUOTA_EXCEEDED": (409, 429)}
"""The one code that has two statuses: 409 where waiting does not help."""


def error_responses(codes: Iterable[str]) -> dict[int, Any]:
    """Status → response, with the codes that it may carry."""
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes):
        for status in _STATUSES.get(code, (ERROR_STATUS[code],)):
            by_status.setdefault(status, []).append(code)
    return {
        status: OpenApiResponse(error_schema(found), description=", ".join(f"`{code}`" for code in found))
        for status, found in sorted(by_status.items())
    }


def error_schema(codes: list[str]) -> dict[str, Any]:
    """The JSON schema of the error envelope with these codes."""
    return {
        "type": "object",
        "required": ["success", "error"],
        "properties": {
            "success": {"type": "boolean", "const": False},
            "error": {
                "type": "object",
                "required": ["code", "message", "request_id"],
                "properties": {
                    "code": {"type": "string", "enum": codes},
                    "message": {"type": "string", "description": "For a person; says what to do."},
                    "request_id": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
                    "details": _details_schema(codes),
                },
            },
        },
    }


def _details_schema(codes: list[str]) -> dict[str, Any]:
    """What `error.details` may hold; only `/healthz` has more in it, what each of its checks found."""
    sentences = {"type": "array", "items": {"type": "string"}}
    return {
        "type": "object",
        "description": "Each bad field with its sentences, or what else the code explains.",
        "additionalProperties": sentences,
        **({"properties": {"checks": _CHECKS}} if _PINGED.intersection(codes) else {}),
    }


@cache
def _envelope_class(answer: type[serializers.Serializer[Any]], many: bool) -> type[serializers.Serializer[Any]]:
    name = answer.__name__.removesuffix("Serializer").removesuffix("Answer") + ("Page" if many else "Envelope")
    fields: dict[str, Any] = {"success": serializers.BooleanField(), "data": answer(many=many)}
    if many:
        fields["meta"] = PageMeta()
    return type(name, (serializers.Serializer,), fields)


def _envelope(answer: Answer, *, many: bool) -> Any:
    if answer is None or isinstance(answer, dict):
        return {
            "type": "object",
            "required": ["success", "data"],
            "properties": {"success": {"type": "boolean", "const": True}, "data": answer or {"type": "null"}},
        }
    return _envelope_class(answer, many)


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"schema": {"type": kind}, "description": description}


_NUL: Final = r"\u0000"
_NO_NUL: Final = r"^[^\u0000]*$"
_NOT_BLANK: Final = r"^[^\u0000]*[^\s\u0000][^\u0000]*$"
_REQUEST_ID: Final = {"X-Request-ID": _header("The id to name when you report a fault.")}
_RETRY: Final = {"Retry-After": _header("Seconds to wait.", "integer")}
_RATE: Final = {
    "RateLimit-Limit": _header("How many a minute.", "integer"),
    "RateLimit-Remaining": _header("How many are left of them.", "integer"),
    "RateLimit-Reset": _header("Seconds until the minute is over.", "integer"),
}
_BY_STATUS: Final[dict[str, dict[str, Any]]] = {"429": _RETRY | _RATE, "503": _RETRY}


class ApiSchema(AutoSchema):
    """Adds what follows from the view: its query, the kind of its ids, 404 of a named object or page, headers."""

    def get_operation_id(self) -> str:
        name: str = super().get_operation_id()
        return name.removesuffix("_retrieve") + "_list" if self._is_paged() else name

    def get_summary(self) -> str | None:
        """The first sentence of the description, which the documents page shows beside the path; one declared wins."""
        first = self.get_description().partition("\n\n")[0].partition(". ")[0]
        return " ".join(first.split()).rstrip(".") or None

    def _is_paged(self) -> bool:
        query = getattr(self.view, "query_classes", {}).get(self.method)
        return query is not None and "cursor" in query().fields

    def _map_serializer_field(self, field: Any, direction: Any, bypass_extensions: bool = False) -> Any:
        """A string's pattern says what DRF refuses in every string: null characters, and nothing but blanks."""
        schema = super()._map_serializer_field(field, direction, bypass_extensions)  # type: ignore[no-untyped-call]  # as below
        plain = isinstance(field, serializers.CharField) and not isinstance(field, serializers.RegexField)
        if not plain or direction != "request" or schema is None or schema.get("type") != "string":
            return schema
        if schema.get("format") not in (None, "password"):  # an address says more by its format
            return schema
        if field.allow_blank:  # no pattern: drf-spectacular would take it for one that forbids the empty string
            schema["not"] = {"pattern": getattr(field, "schema_refused", _NUL)}
        else:
            fallback = _NOT_BLANK if field.trim_whitespace else _NO_NUL
            schema["pattern"] = getattr(field, "schema_pattern", fallback)
        return schema

    def _get_request_body(self, direction: Literal["request", "response"] = "request") -> Any:
        """A DELETE has one where it is declared (an account ends on its password); drf-spectacular knows of none."""
        method, self.method = self.method, "PUT" if self.method == "DELETE" else self.method
        try:
            return super()._get_request_body(direction)  # type: ignore[no-untyped-call]  # untyped there
        finally:
            self.method = method

    def get_override_parameters(self) -> list[Any]:
        query = getattr(self.view, "query_classes", {}).get(self.method)
        return [query] if query is not None else []

    def _resolve_path_parameters(self, variables: Any) -> list[Any]:
        found: list[Any] = super()._resolve_path_parameters(variables)  # type: ignore[no-untyped-call]  # untyped there
        for parameter in found:
            if parameter["name"] in _ID_PARAMETERS:
                parameter["schema"] = {"type": "string", "format": "uuid"}
        return found

    def _get_response_bodies(self, direction: Literal["request", "response"] = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        if ("{" in self.path or self._is_paged()) and "404" not in bodies:
            missing = error_responses(("NOT_FOUND",))[404]
            bodies["404"] = self._get_response_for_code(missing, "404")  # type: ignore[no-untyped-call]  # untyped there
        for status, body in bodies.items():
            body["headers"] = {**body.get("headers", {}), **_REQUEST_ID, **_BY_STATUS.get(status, {})}
        return dict(sorted(bodies.items()))
