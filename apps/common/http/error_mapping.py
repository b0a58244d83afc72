"""The one place where anything that goes wrong becomes a refusal with a code. No driver's message passes it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis.exceptions
import structlog
from django.core import exceptions as core
from django.db import DataError, InterfaceError, InternalError, OperationalError
from django.http import Http404, UnreadablePostError
from rest_framework import exceptions as drf

from apps.common.errors import DomainError
from apps.common.redis import refuses_writes

logger = structlog.get_logger(__name__)

_BY_STATUS: Final[Mapping[int, str]] = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "RATE_LIMITED",
}
# SQLSTATEs that say "not now" rather than "wrong": lock_timeout and NOWAIT (55P03), statement_timeout (57014), a
# deadlock or a serialisation failure (40xxx), no free connection (53300). The others of OperationalError, and one
# without SQLSTATE (no connection, our own deadline), mean that the server is not there.
_READ_ONLY: Final = "25006"  # a primary that was demoted, or whose storage is full: an InternalError
_BUSY: Final = ("55P03", "57014", "40001", "40P01", "53300")


def domain_error(exc: BaseException) -> DomainError:
    """The refusal for `exc`. An exception of no known kind is logged with its traceback and becomes INTERNAL_ERROR."""
    if isinstance(exc, DomainError):
        return exc
    part = unavailable(exc)
    if part is not None:
        logger.warning("part_unavailable", code=part.code, error=type(exc).__name__)
        return part
    if isinstance(exc, drf.ValidationError):
        return DomainError("VALIDATION_ERROR", details=field_errors(exc.detail))
    if isinstance(exc, drf.Throttled):
        return DomainError("RATE_LIMITED", retry_after=math.ceil(getattr(exc, "wait", None) or 1))
    if isinstance(exc, drf.APIException) and exc.status_code in _BY_STATUS:
        return DomainError(_BY_STATUS[exc.status_code])
    if isinstance(exc, Http404):
        return DomainError("NOT_FOUND")
    if isinstance(exc, core.PermissionDenied):
        return DomainError("FORBIDDEN")
    if isinstance(exc, core.RequestDataTooBig):
        return DomainError("PAYLOAD_TOO_LARGE")
    if isinstance(exc, core.BadRequest | core.SuspiciousOperation | UnreadablePostError):
        return DomainError("BAD_REQUEST")
    logger.error("request_failed", exc_info=exc)
    return DomainError("INTERNAL_ERROR")


def unavailable(exc: BaseException) -> DomainError | None:
    """The 503 for an `exc` that means that PostgreSQL or Redis is down or overloaded; None for any other exception."""
    state = getattr(exc.__cause__, "sqlstate", None)
    if isinstance(exc, InterfaceError) or (isinstance(exc, InternalError) and state == _READ_ONLY):
        return DomainError("DATABASE_UNAVAILABLE")
    if isinstance(exc, OperationalError) and not isinstance(exc, DataError):
        return DomainError("OVERLOADED" if state in _BUSY else "DATABASE_UNAVAILABLE")
    if isinstance(exc, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError) or refuses_writes(exc):
        return DomainError("CACHE_UNAVAILABLE")
    return None


def field_errors(detail: Any, prefix: str = "") -> dict[str, list[str]]:
    """DRF's nested error detail as a flat map: dotted field name → list of sentences."""
    if isinstance(detail, Mapping):
        flat: dict[str, list[str]] = {}
        for key, value in detail.items():
            flat.update(field_errors(value, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    items = detail if isinstance(detail, Sequence) and not isinstance(detail, str) else [detail]
    plain = [str(item) for item in items if not isinstance(item, Mapping | list)]
    flat = {prefix or "non_field_errors": plain} if plain else {}
    for index, item in enumerate(items):
        if isinstance(item, Mapping | list) and item:
            flat.update(field_errors(item, f"{prefix}.{index}" if prefix else str(index)))
    return flat
