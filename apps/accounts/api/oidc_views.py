"""Logging in at the OpenID provider: there, back, and the front end's code for a login. 404 where there is none."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from django.conf import settings
from django.http import HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.api.serializers import LoginAnswer, OidcCodeBody
from apps.accounts.api.views import login_answer
from apps.accounts.oidc import flow, login
from apps.accounts.oidc.config import Config, config
from apps.common.api.schema import describe, error_responses
from apps.common.api.views import PublicApiView, StrictQuery
from apps.common.errors import invalid, not_found
from apps.common.http.responses import ok

_ERRORS: Final = (
    "BAD_REQUEST", "VALIDATION_ERROR", "NOT_FOUND", "URI_TOO_LONG", "RATE_LIMITED", "INTERNAL_ERROR",
    "CACHE_UNAVAILABLE",
)  # fmt: skip

Handler = TypeVar("Handler", bound=Callable[..., Any])


def _redirects(where: str) -> Callable[[Handler], Handler]:
    """Declares a GET that a browser follows, in the schema."""
    parameter = OpenApiParameter("Location", str, OpenApiParameter.HEADER, response=[302], description=where)
    declare: Callable[[Handler], Handler] = extend_schema(
        tags=["Auth"],
        auth=[],
        parameters=[parameter],
        responses={302: OpenApiResponse(description=where), **error_responses((*_ERRORS, "OVERLOADED"))},
    )
    return declare


@dataclass(frozen=True, slots=True)
class Cookie:
    """What binds a login to its browser, for ten minutes.

    Over https its name says `__Host-`: browsers take it from this host alone (RFC 6265bis §4.1.3.2), so that no
    neighbouring subdomain plants one. That wants the path `/`; over http such a name would be refused.
    """

    name: str
    path: str
    secure: bool


def _cookie() -> Cookie:
    if settings.VISIONA["PUBLIC_URL"].startswith("https:"):
        return Cookie("__Host-visiona_oidc", "/", secure=True)
    return Cookie("visiona_oidc", "/api/auth/oidc", secure=False)


def provider_or_404() -> Config:
    """The provider at which people log in through us."""
    known = config()
    if known is None or not known.client_id:
        raise not_found()
    return known


class OidcView(PublicApiView):
    """A route that is there only where a provider is, and we are its client."""

    target: Config

    def load(self, request: Request, **kwargs: str) -> Config:
        return provider_or_404()


class LoginQuery(StrictQuery):
    redirect_uri = serializers.CharField(
        max_length=2000, help_text="The front end's page to end at: one of `VISIONA_OIDC_REDIRECT_URIS`, exactly."
    )
    link = serializers.CharField(
        max_length=64,
        required=False,
        help_text="Of `POST /api/auth/identities/link`: this login links, and logs in nobody.",
    )


class OidcLoginView(OidcView):
    query_classes = {"GET": LoginQuery}  # noqa: RUF012 - declared ClassVar in ApiView

    @_redirects("The provider's login.")
    def get(self, request: Request) -> HttpResponse:
        """Send a browser here to log in at the provider; a cookie of ten minutes binds the login to it."""
        cookie = _cookie()
        browser = request.COOKIES.get(cookie.name, "")
        fresh = len(browser) != 43  # one of ours stays, so that two tabs may log in at once
        if fresh:
            browser = secrets.token_urlsafe(32)
        url, state = flow.begin(self.target, browser=browser, **self.query)
        # Two tabs that both begin without a cookie each get one: of the common name the second wins, and the first
        # finds its own again by its state.
        own = (f"{cookie.name}_{flow.state_name(state)}",) if fresh else ()
        response = _to(url)
        for name in (cookie.name, *own):
            response.set_cookie(
                name,
                browser,
                max_age=flow.STATE_SECONDS,
                path=cookie.path,
                secure=cookie.secure,
                httponly=True,
                samesite="Lax",  # the provider sends the browser back by a link
            )
        return response


class CallbackQuery(StrictQuery):
    """What the protocol has a provider send back. Names that are not here are ignored (RFC 6749 §4.1.2)."""

    state = serializers.CharField(max_length=256)
    code = serializers.CharField(required=False, allow_blank=True)
    iss = serializers.CharField(required=False, allow_blank=True)
    error = serializers.CharField(required=False, allow_blank=True)
    error_description = serializers.CharField(required=False, allow_blank=True)
    error_uri = serializers.CharField(required=False, allow_blank=True)

    @classmethod
    def read(cls, request: Request) -> dict[str, Any]:
        """The typed values; kept nowhere, since a code is a secret. Raises VALIDATION_ERROR."""
        given = {name: values for name, values in request.query_params.lists() if name in cls._declared_fields}
        twice = [name for name, values in given.items() if len(values) > 1]
        if twice:
            raise invalid(**dict.fromkeys(twice, str(_("Given more than once."))))
        query = cls(data={name: values[0] for name, values in given.items() if values})
        query.is_valid(raise_exception=True)
        return dict(query.validated_data)


class OidcCallbackView(OidcView):
    query_classes = {"GET": CallbackQuery}  # noqa: RUF012 - declared ClassVar in ApiView

    @_redirects(
        "The front end's page, with `#code=` (one use, 60 s) or `#error=`: one of our codes, or `PROVIDER_ERROR` with "
        "the provider's own word as `reason`."
    )
    def get(self, request: Request) -> HttpResponse:
        """Where the provider sends the browser back to."""
        cookie = _cookie()
        own = f"{cookie.name}_{flow.state_name(self.query['state'])}"
        browsers = [request.COOKIES.get(name, "") for name in (own, cookie.name)]
        address, now = self.actor.address, timezone.now()
        response = _to(flow.finish(self.target, self.query, browsers=browsers, address=address, now=now))
        if own in request.COOKIES:
            response.set_cookie(own, "", max_age=0, path=cookie.path, secure=cookie.secure, httponly=True)
        return response


class OidcTokenView(OidcView):
    @describe(
        "Auth",
        body=OidcCodeBody,
        answer=LoginAnswer,
        errors=("INVALID_CREDENTIALS", "ACCOUNT_DISABLED", "EMAIL_TAKEN", "FORBIDDEN", "NOT_FOUND"),
        public=True,
    )
    def post(self, request: Request) -> Response:
        """Log in with the code from the page's fragment; answers as `login` does. Makes or links the account."""
        user, token, expires_at = login.redeem(
            actor=self.actor,
            agent=request.headers.get("User-Agent", ""),
            now=timezone.now(),
            **self.body(OidcCodeBody),
        )
        return ok(login_answer(user, token, expires_at))


def _to(url: str) -> HttpResponse:
    """A redirect to whatever is on the lists: Django's own knows no scheme of an app."""
    return HttpResponse(status=302, headers={"Location": url})
