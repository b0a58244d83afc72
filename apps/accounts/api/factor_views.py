"""The second factor of one's own account: switched on and off, its recovery codes renewed."""

from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.factors import checking, owner
from apps.common.api import ApiView
from apps.common.fields import TextField
from apps.common.responses import ok
from apps.common.schema import describe

_OF_PASSWORD = ("INVALID_CREDENTIALS", "INVALID_STATE")
_OF_BOTH = (*_OF_PASSWORD, "SECOND_FACTOR_REQUIRED")


class BeginBody(serializers.Serializer[Any]):
    password = TextField(max_length=1024, trim_whitespace=False, help_text="The present one.")


class CodeBody(serializers.Serializer[Any]):
    code = TextField(max_length=64, help_text="The authenticator's first.")


class BothBody(BeginBody):
    code = TextField(max_length=64, help_text="Of the authenticator, or a recovery code.")


class FactorAnswer(serializers.Serializer[Any]):
    enabled = serializers.BooleanField()
    enabled_at = serializers.DateTimeField(allow_null=True)
    recovery_codes_left = serializers.IntegerField()


class OfferAnswer(serializers.Serializer[Any]):
    """For the authenticator; it counts once a code of it is sent to `confirm`."""

    secret = serializers.CharField(help_text="In base 32, to be typed.")
    uri = serializers.CharField(help_text="`otpauth://…`, to be shown as a QR code.")


class CodesAnswer(serializers.Serializer[Any]):
    recovery_codes = serializers.ListField(child=serializers.CharField(), help_text="Each good once; shown once.")


class FactorView(ApiView):
    @describe("Auth", answer=FactorAnswer)
    def get(self, request: Request) -> Response:
        """Whether a login with the password is asked for a code besides."""
        factor = checking.factor_of(self.user.pk)
        return ok(
            {
                "enabled": factor is not None,
                "enabled_at": factor and factor.confirmed_at,
                "recovery_codes_left": len(factor.recovery_hashes) if factor else 0,
            }
        )

    @describe("Auth", body=BeginBody, answer=OfferAnswer, status=201, errors=_OF_PASSWORD)
    def post(self, request: Request) -> Response:
        """Begin to switch a second factor on: a secret for an authenticator app. Nothing changes until `confirm`."""
        offer = owner.begin(actor=self.actor, user=self.user, now=timezone.now(), **self.body(BeginBody))
        return ok({"secret": offer.secret, "uri": offer.uri}, status=201)

    @describe("Auth", body=BothBody, errors=_OF_BOTH)
    def delete(self, request: Request) -> Response:
        """Switch the second factor off."""
        owner.switch_off(actor=self.actor, user=self.user, now=timezone.now(), **self.body(BothBody))
        return ok(None)


class ConfirmView(ApiView):
    @describe("Auth", body=CodeBody, answer=CodesAnswer, errors=_OF_PASSWORD)
    def post(self, request: Request) -> Response:
        """Switch the second factor on, by the authenticator's first code.

        Keep the recovery codes: they open the account where the authenticator is lost.
        """
        _factor, codes = owner.confirm(actor=self.actor, user=self.user, now=timezone.now(), **self.body(CodeBody))
        return ok({"recovery_codes": codes})


class RecoveryCodesView(ApiView):
    @describe("Auth", body=BothBody, answer=CodesAnswer, errors=_OF_BOTH)
    def post(self, request: Request) -> Response:
        """Ten new recovery codes; those before are void."""
        codes = owner.renew(actor=self.actor, user=self.user, now=timezone.now(), **self.body(BothBody))
        return ok({"recovery_codes": codes})
