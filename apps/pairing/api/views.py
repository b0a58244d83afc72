"""The routes of pairing tokens. Which devices are connected (`/api/pairing/status`) is told by `apps.devices`."""

from typing import ClassVar

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404
from apps.common.http.responses import ok
from apps.pairing import selectors, services
from apps.pairing.api.serializers import IssuedToken, TokenBody, TokenSerializer
from apps.pairing.models import PairingToken


class TokenCreateView(ApiView):
    @describe("Pairing", body=TokenBody, answer=IssuedToken, status=201, errors=("QUOTA_EXCEEDED",))
    def post(self, request: Request) -> Response:
        """A pairing token, and the line that connects a box with it. It is shown this once."""
        issued = services.issue_token(
            actor=self.actor, owner_id=self.user.pk, now=timezone.now(), **self.body(TokenBody)
        )
        data = {
            "id": issued.token.id,
            "token": issued.secret,
            "name": issued.token.name,
            "expires_at": issued.token.expires_at,
            "command": issued.command,
        }
        return ok(IssuedToken(data).data, status=201)


class TokenListView(ApiView):
    query_classes: ClassVar = {"GET": PageQuery}

    @describe("Pairing", answer=TokenSerializer, many=True)
    def get(self, request: Request) -> Response:
        """The pairing tokens that were issued, used up and revoked ones too."""
        rows = selectors.tokens_of(self.user.pk)
        return self.page(rows, lambda found: list(TokenSerializer(found, many=True).data))


class TokenView(ApiView):
    target: PairingToken

    def load(self, request: Request, **kwargs: str) -> PairingToken:
        return selectors.token_of(self.user.pk, id_or_404(kwargs["id"]))

    @describe("Pairing")
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Revoke a pairing token and what a box got by it; a tunnel that it holds closes."""
        services.revoke_token(actor=self.actor, token_id=self.target.id, owner_id=self.user.pk, now=timezone.now())
        return ok(None)
