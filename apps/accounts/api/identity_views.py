"""Who one is at identity providers: seen, linked, unlinked by the account's owner."""

from typing import cast

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts import selectors
from apps.accounts.api.oidc_views import provider_or_404
from apps.accounts.api.serializers import IdentityLinkAnswer, IdentityLinkBody, IdentitySerializer, OidcCodeBody
from apps.accounts.models import UserIdentity
from apps.accounts.oidc import owner
from apps.accounts.oidc.config import Config
from apps.accounts.sessions import LoginSession
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404
from apps.common.errors import not_found
from apps.common.http.responses import ok


class IdentityLinkView(ApiView):
    """Where an owner begins to link; 404 without a provider."""

    target: Config

    def load(self, request: Request, **kwargs: str) -> Config:
        return provider_or_404()

    @describe(
        "Auth",
        body=IdentityLinkBody,
        answer=IdentityLinkAnswer,
        status=201,
        errors=("INVALID_CREDENTIALS", "FORBIDDEN", "NOT_FOUND"),
    )
    def post(self, request: Request) -> Response:
        """Begin to link another identity of the provider to this account: send the browser to `url`, within a minute.

        It comes back to the page as from a login; hand its code to `POST /api/auth/identities`.
        """
        body = self.body(IdentityLinkBody)
        url = owner.begin_link(
            self.target,
            actor=self.actor,
            user=self.user,
            session=cast("LoginSession | None", request.auth),
            redirect_uri=body["redirect_uri"],
            password=body.get("password", ""),
            now=timezone.now(),
        )
        return ok({"url": url}, status=201)


class IdentityListView(ApiView):
    query_classes = {"GET": PageQuery}  # noqa: RUF012 - declared ClassVar in ApiView

    @describe("Auth", answer=IdentitySerializer, many=True)
    def get(self, request: Request) -> Response:
        """Who one is at the identity provider."""
        rows = selectors.identities_of(self.user)
        return self.page(rows, lambda found: list(IdentitySerializer(found, many=True).data))

    @describe(
        "Auth",
        body=OidcCodeBody,
        answer=IdentitySerializer,
        status=201,
        errors=("INVALID_CREDENTIALS", "CONFLICT"),
    )
    def post(self, request: Request) -> Response:
        """Link the identity that came back with this code, which this account has asked for."""
        row = owner.link(actor=self.actor, user=self.user, now=timezone.now(), **self.body(OidcCodeBody))
        return ok(IdentitySerializer(row).data, status=201)


class IdentityView(ApiView):
    target: UserIdentity

    def load(self, request: Request, **kwargs: str) -> UserIdentity:
        row = selectors.identities_of(self.user).filter(pk=id_or_404(kwargs["id"])).first()
        if row is None:
            raise not_found()
        return row

    @describe("Auth", errors=("INVALID_STATE",))
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's public name
        """Unlink an identity: its logins and tokens are this account's no more. The last way in stays."""
        owner.unlink(actor=self.actor, user_id=self.user.pk, identity_id=self.target.pk, now=timezone.now())
        return ok(None)
