"""What every control-plane view stands on: the order of refusals, strict queries, pages.

`ApiView.initial` is the order of api.md: credential (401), method (405), ownership (404), then the query (400);
the body is read by the handler, last. Proxy views bypass this file: they parse and negotiate nothing.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final

from django.http import HttpRequest
from django.utils.translation import gettext as _
from rest_framework import serializers
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.common.actor import Actor
from apps.common.api.fields import QueryWholeField
from apps.common.api.pagination import CURSOR_PATTERN, DEFAULT_LIMIT, MAX_LIMIT, First, Rows, paginate
from apps.common.api.parsers import ApiRequest
from apps.common.errors import DomainError, not_found
from apps.common.http.error_mapping import domain_error
from apps.common.http.responses import error_headers, ok, request_id_of
from apps.common.limits.throttle import count_user
from tunnel.contract import error_envelope

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")


def id_or_404(text: str) -> uuid.UUID:
    """The UUID in a path. A text that is no UUID names no object, so it is refused as NOT_FOUND."""
    if not _UUID.match(text):
        raise not_found()
    return uuid.UUID(text)


class StrictQuery(serializers.Serializer[Any]):
    """A route's query parameters as a serializer: undeclared names and repeated values are refused.

    A field's answer depends on its text alone: neither on the time, nor on who asks, nor on a row.
    """

    @classmethod
    def read(cls, request: Request) -> dict[str, Any]:
        """The typed values of the request's query. Raises DomainError VALIDATION_ERROR naming each bad one."""
        return dict(_checked(cls, tuple((name, tuple(values)) for name, values in request.query_params.lists())))


@lru_cache(maxsize=256)
def _checked(form: type[StrictQuery], given: tuple[tuple[str, tuple[str, ...]], ...]) -> Mapping[str, Any]:
    """The query's typed values. A refusal is not cached: it is raised anew on each call.

    Results are cached, since clients repeat their queries: the fields of a query depend on its text alone, and building
    them takes a fifteenth of the time of a list request. The limit of a request head (32 KiB) bounds an entry.
    """
    query = form(data={name: values[-1] for name, values in given if values})
    bad = {name: [_("This route has no such query parameter.")] for name, __ in given if name not in query.fields}
    bad |= {name: [_("Given more than once.")] for name, values in given if len(values) > 1 and name not in bad}
    if bad:
        raise DomainError("VALIDATION_ERROR", details=bad)
    query.is_valid(raise_exception=True)
    typed: Mapping[str, Any] = query.validated_data
    return typed


class NoQuery(StrictQuery):
    """A route without query parameters."""


class PageQuery(StrictQuery):
    """The query of a list: add filters as fields, and give `ordering` its choices with `ordering_field`."""

    limit = QueryWholeField(min_value=1, max_value=MAX_LIMIT, default=DEFAULT_LIMIT, help_text="Rows a page.")
    cursor = serializers.RegexField(
        CURSOR_PATTERN, required=False, help_text="From `meta.next` or `meta.previous` of an earlier page."
    )
    ordering = serializers.ChoiceField(
        choices=["created_at", "-created_at"], default="-created_at", help_text="`-` before a field: descending."
    )


def ordering_field(*names: str, default: str) -> serializers.ChoiceField:
    """The `ordering` of a PageQuery: each name (never null in the table), and the same with `-`."""
    choices = [sign + name for name in names for sign in ("", "-")]
    return serializers.ChoiceField(choices=choices, default=default, help_text="`-` before a field: descending.")


def _let_go(answer: Any) -> None:
    """Drops the references by which a rendered response and its request keep each other alive."""
    request = answer.renderer_context["request"]
    request.parser_context = {}
    answer.renderer_context = {}


class ApiView(APIView):
    """A view of the control plane.

    A subclass gives `query_classes` for the methods that take a query, and overrides `load` where the path names an
    object; its result stands in `self.target`, the checked query in `self.query`.
    """

    query_classes: ClassVar[Mapping[str, type[StrictQuery]]] = {}
    throttle_scope: ClassVar[str] = "API"
    permission_classes = [IsAuthenticated]  # noqa: RUF012 - DRF's own shape
    query: dict[str, Any]
    target: Any

    def load(self, request: Request, **kwargs: str) -> Any:
        """The object that the path names, of the request's user alone. Raises DomainError NOT_FOUND."""
        return None

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        return ApiRequest(
            request,
            parsers=self.get_parsers(),
            authenticators=self.get_authenticators(),
            negotiator=self.get_content_negotiator(),
            parser_context=self.get_parser_context(request),
        )

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """As DRF, then breaks the reference cycle between request and response once the response is rendered.

        With the cycle both, and a large body with them, would stay in memory until the garbage collector runs.
        """
        answer = super().finalize_response(request, response, *args, **kwargs)
        if isinstance(answer, Response):
            answer.add_post_render_callback(_let_go)
        return answer

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)  # 401
        method = (request.method or "").upper()
        if method not in self.allowed_methods:
            raise MethodNotAllowed(method)  # 405
        self.target = self.load(request, **kwargs)  # 404
        read_by = "GET" if method == "HEAD" else method
        self.query = self.query_classes.get(read_by, NoQuery).read(request)  # 400

    def check_throttles(self, request: Request) -> None:
        """Counts the call for its user, where the look-up of the credential has not. Raises RATE_LIMITED."""
        count_user(request, self.throttle_scope)

    def options(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Response:
        """Answers an OPTIONS request that is no CORS preflight: an empty body, and the methods in `Allow`."""
        return ok(None)

    @property
    def user(self) -> Any:
        """The logged-in User (`request.user`, without the AnonymousUser that never reaches a handler)."""
        return self.request.user

    @property
    def actor(self) -> Actor:
        """Who acts in this request."""
        return Actor.of(self.request)

    def body(self, serializer: type[serializers.Serializer[Any]], **kwargs: Any) -> dict[str, Any]:
        """The request's JSON body as the serializer reads it. Raises VALIDATION_ERROR naming each bad field."""
        form = serializer(data=self.request.data, **kwargs)
        form.is_valid(raise_exception=True)
        values: dict[str, Any] = form.validated_data
        return values

    def page(self, rows: Rows, render: Callable[[list[Any]], list[Any]], first: First | None = None) -> Response:
        """One page of `rows` by the checked PageQuery; `render` turns its rows into JSON values.

        `rows`, `first`: as in `paginate`.
        """
        found, meta = paginate(
            self.request,
            rows,
            limit=self.query["limit"],
            ordering=self.query["ordering"],
            cursor=self.query.get("cursor"),
            first=first,
        )
        return ok(render(found), meta=meta)


class PublicApiView(ApiView):
    """A view that needs no credential, and looks at none."""

    authentication_classes = ()
    permission_classes = []  # noqa: RUF012 - DRF's own shape


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response:
    """DRF's EXCEPTION_HANDLER: every error leaves in the envelope, a crash too."""
    request: Request = context["request"]
    error = domain_error(exc)
    exc.__traceback__ = None  # a caller that keeps the exception would otherwise keep the request alive with it
    body = error_envelope(
        error.code,
        error.message,
        request_id_of(request._request),  # noqa: SLF001 - DRF offers no public way to Django's request
        error.details,
    )
    return Response(body, status=error.status, headers=error_headers(error))
