"""The proxied routes in the OpenAPI schema: what we may say, beside whatever the box answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from apps.common.api.schema import error_schema
from tunnel.contract import ERROR_STATUS

View = TypeVar("View", bound=type)

METHODS: Final = ("get", "post", "put", "patch", "delete")
"""Those that are declared; a box is asked with any."""
REFUSALS: Final = (
    "BAD_REQUEST", "VALIDATION_ERROR", "UNAUTHENTICATED", "NOT_FOUND", "METHOD_NOT_ALLOWED", "REQUEST_TIMEOUT",
    "AMBIGUOUS_DEVICE", "PAYLOAD_TOO_LARGE", "URI_TOO_LONG", "RATE_LIMITED", "HEADERS_TOO_LARGE", "INTERNAL_ERROR",
    "AGENT_UNREACHABLE", "AGENT_BAD_RESPONSE", "TUNNEL_DISCONNECTED", "TUNNEL_UNAVAILABLE", "DATABASE_UNAVAILABLE",
    "CACHE_UNAVAILABLE", "OVERLOADED", "TUNNEL_TIMEOUT",
)  # fmt: skip
_LOGIN: Final[list[Any]] = [{"login": []}]
DEVICE: Final = (
    OpenApiParameter(
        "device_id", OpenApiTypes.STR, OpenApiParameter.QUERY,
        description="The device, where several are online. A value that is no UUID belongs to the box and passes.",
    ),
    OpenApiParameter(
        "X-Device-Id", OpenApiTypes.UUID, OpenApiParameter.HEADER, description="The device; wins over `device_id`.",
    ),
)  # fmt: skip


TICKET: Final = OpenApiParameter(
    "ticket", OpenApiTypes.STR, OpenApiParameter.QUERY,
    description="Of `POST /api/ws/ticket`, in the place of a login, where a browser can send no header. A reusable one"
    " is taken on HEAD too.",
)  # fmt: skip


_BOX_LOGIN: Final = OpenApiParameter(
    "X-VisionA-Box-Authorization", OpenApiTypes.STR, OpenApiParameter.HEADER,
    description="Becomes the box's `Authorization`, for a box that has a login of its own; at most 8 KiB.",
)  # fmt: skip


_SERVED_BY: Final = OpenApiParameter(
    "X-VisionA-Device-Id", OpenApiTypes.UUID, OpenApiParameter.HEADER, response=True,
    description="The member that answered.",
)  # fmt: skip


def _responses(*more: str) -> dict[Any, Any]:
    """Per status: our envelope, or what the box says, which may be anything of the same status."""
    by_status: dict[int, list[str]] = {}
    for code in (*REFUSALS, *more):
        by_status.setdefault(ERROR_STATUS[code], []).append(code)
    found: dict[Any, Any] = {
        ("default", "*/*"): OpenApiResponse({}, description="Whatever the box answers, unchanged.")
    }
    for status, codes in sorted(by_status.items()):
        schema = {"anyOf": [error_schema(codes), {}]}
        told = ", ".join(f"`{code}`" for code in codes)
        found[status, "*/*"] = OpenApiResponse(schema, description=f"The box's own, or our envelope: {told}")
    return found


def proxied(
    tag: str,
    summary: str,
    *,
    parameters: Iterable[OpenApiParameter] = (),
    methods: Iterable[str] = METHODS,
    tickets: bool = False,
    cluster: bool = False,
) -> Callable[[View], View]:
    """Declares a proxy view's methods; the view's own `dispatch` serves them, and all others.

    `tickets`: a GET may come with one; `cluster`: the answer names the member that gave it.
    """

    def declare(view: View) -> View:
        for method in methods:
            by_ticket = tickets and method == "get"
            handler = extend_schema(
                tags=[tag],
                summary=summary,
                parameters=[
                    *parameters,
                    _BOX_LOGIN,
                    *([TICKET] if by_ticket else []),
                    *([_SERVED_BY] if cluster else []),
                ],
                request=None if method in ("get", "delete") else {"application/octet-stream": OpenApiTypes.BINARY},
                responses=_responses(*(["FORBIDDEN"] if by_ticket else [])),
                auth=_LOGIN,
            )(_handler(method))
            setattr(view, method, handler)
        return view

    return declare


def _handler(method: str) -> Callable[..., Any]:
    def handler(self: Any, request: Any, **kwargs: str) -> Any:
        return self.dispatch(request, **kwargs)

    handler.__name__ = method
    return handler


ALL_DEVICES: Final = (
    OpenApiParameter(
        "device_id", OpenApiTypes.STR, OpenApiParameter.QUERY,
        description="The device, where several are online; or `all`: every online one at once.",
    ),
    DEVICE[1],
)  # fmt: skip
_SCAN_ALL: Final = {
    "type": "object",
    "required": ["success", "data"],
    "properties": {
        "success": {"const": True},
        "data": {
            "type": "object",
            "required": ["results"],
            "properties": {"results": {"type": "array", "items": {
                "type": "object",
                "required": ["device_id", "ok", "accelerators"],
                "properties": {
                    "device_id": {"type": "string", "format": "uuid"},
                    "ok": {"type": "boolean"},
                    "accelerators": {"type": "array", "items": {"type": "object"}},
                    "error": {
                        "type": "object",
                        "required": ["code", "message"],
                        "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                    },
                },
            }}},
        },
    },
}  # fmt: skip


def scanned() -> Callable[[View], View]:
    """Declares the scan: the box's own answer, or ours for all devices."""

    def declare(view: View) -> View:
        responses = _responses()
        responses[200, "*/*"] = OpenApiResponse(
            {"anyOf": [_SCAN_ALL, {}]},
            description="The box's own, unchanged; of all devices: each one's result, in our envelope.",
        )
        for method in ("get", "post"):
            declared = extend_schema(
                tags=["Devices"],
                summary="Scan for accelerators",
                parameters=[*ALL_DEVICES, _BOX_LOGIN],
                request=None if method == "get" else {"application/octet-stream": OpenApiTypes.BINARY},
                responses=responses,
                auth=_LOGIN,
            )(_handler(method))
            setattr(view, method, declared)
        return view

    return declare


def sockets() -> Callable[[View], View]:
    """Declares `/ws/*`: a switch of protocols, or a refusal before it, ours or the box's."""

    def declare(view: View) -> View:
        responses = _responses("FORBIDDEN", "UPGRADE_REQUIRED")
        responses[101] = OpenApiResponse(None, description="From here on the WebSocket is the box's.")
        declared = extend_schema(
            tags=["WebSocket"],
            summary="A WebSocket to the box, path for path",
            parameters=[*DEVICE, _BOX_LOGIN, TICKET],
            request=None,
            responses=responses,
            auth=_LOGIN,
        )
        setattr(view, "get", declared(_handler("get")))  # noqa: B010 - a handler that only the schema looks at
        return view

    return declare
