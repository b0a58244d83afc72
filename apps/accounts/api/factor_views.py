"""The second factor of one's own account: authenticator and passkeys added and removed, recovery codes renewed."""

from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.api.serializers import AttestationBody, PasskeyOptionsAnswer, ProofBody
from apps.accounts.api.views import proved
from apps.accounts.factors import checking, owner, passkeys, webauthn
from apps.accounts.factors.webauthn import Answer
from apps.accounts.models import Passkey
from apps.common.api.fields import PlainField, TextField
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404
from apps.common.errors import not_found
from apps.common.http.responses import ok

_OF_PASSWORD = ("INVALID_CREDENTIALS", "INVALID_STATE")
_OF_BOTH = (*_OF_PASSWORD, "SECOND_FACTOR_REQUIRED")


class CodeBody(serializers.Serializer[Any]):
    code = TextField(max_length=64, help_text="The authenticator's first.")


class BothBody(ProofBody):
    password = TextField(max_length=1024, trim_whitespace=False, help_text="The present one.")


class NewPasskeyBody(serializers.Serializer[Any]):
    name = PlainField(max_length=80, help_text="For its owner: what it is, or where.")
    credential = AttestationBody()


class PasskeySerializer(serializers.ModelSerializer[Passkey]):
    class Meta:
        model = Passkey
        fields = ("id", "name", "last_used_at", "created_at")


class FactorAnswer(serializers.Serializer[Any]):
    enabled = serializers.BooleanField()
    enabled_at = serializers.DateTimeField(allow_null=True)
    authenticator = serializers.BooleanField(help_text="Whether it is an authenticator's codes, besides others.")
    passkeys = serializers.IntegerField(help_text="How many passkeys there are.")
    recovery_codes_left = serializers.IntegerField()


class OfferAnswer(serializers.Serializer[Any]):
    """For the authenticator; it counts once a code of it is sent to `confirm`."""

    secret = serializers.CharField(help_text="In base 32, to be typed.")
    uri = serializers.CharField(help_text="`otpauth://…`, to be shown as a QR code.")


class CodesAnswer(serializers.Serializer[Any]):
    recovery_codes = serializers.ListField(child=serializers.CharField(), help_text="Each good once; shown once.")


class NewPasskeyAnswer(serializers.Serializer[Any]):
    passkey = PasskeySerializer()
    recovery_codes = serializers.ListField(
        child=serializers.CharField(), help_text="Of an account's first factor: each good once; shown once. Else empty."
    )


class FactorView(ApiView):
    @describe("Auth", answer=FactorAnswer)
    def get(self, request: Request) -> Response:
        """Whether a login with the password is asked for a second factor besides, and for which."""
        factor = checking.factor_of(self.user.pk)
        return ok(
            {
                "enabled": factor is not None,
                "enabled_at": factor and factor.confirmed_at,
                "authenticator": bool(factor and factor.secret_sealed),
                "passkeys": factor.passkeys.count() if factor else 0,
                "recovery_codes_left": len(factor.recovery_hashes) if factor else 0,
            }
        )

    @describe("Auth", body=BothBody, answer=OfferAnswer, status=201, errors=_OF_BOTH)
    def post(self, request: Request) -> Response:
        """Begin to add an authenticator app: a secret for it. Nothing changes until `confirm`."""
        given = proved(self.body(BothBody), "prove")
        offer = owner.begin(actor=self.actor, user=self.user, now=timezone.now(), **given)
        return ok({"secret": offer.secret, "uri": offer.uri}, status=201)

    @describe("Auth", body=BothBody, errors=_OF_BOTH)
    def delete(self, request: Request) -> Response:
        """Switch the second factor off: the authenticator, all passkeys and recovery codes go."""
        given = proved(self.body(BothBody), "prove")
        owner.switch_off(actor=self.actor, user=self.user, now=timezone.now(), **given)
        return ok(None)


class AuthenticatorView(ApiView):
    @describe("Auth", body=BothBody, errors=_OF_BOTH)
    def delete(self, request: Request) -> Response:
        """Remove the authenticator; passkeys stay. Without one the second factor is off."""
        given = proved(self.body(BothBody), "prove")
        owner.remove_authenticator(actor=self.actor, user=self.user, now=timezone.now(), **given)
        return ok(None)


class ConfirmView(ApiView):
    @describe("Auth", body=CodeBody, answer=CodesAnswer, errors=_OF_PASSWORD)
    def post(self, request: Request) -> Response:
        """Add the authenticator, by its first code.

        Keep the recovery codes: they open the account where the authenticator is lost. Where a passkey was on before,
        those from then stay, and the list is empty.
        """
        _factor, codes = owner.confirm(actor=self.actor, user=self.user, now=timezone.now(), **self.body(CodeBody))
        return ok({"recovery_codes": codes})


class RecoveryCodesView(ApiView):
    @describe("Auth", body=BothBody, answer=CodesAnswer, errors=_OF_BOTH)
    def post(self, request: Request) -> Response:
        """Ten new recovery codes; those before are void."""
        given = proved(self.body(BothBody), "prove")
        codes = owner.renew(actor=self.actor, user=self.user, now=timezone.now(), **given)
        return ok({"recovery_codes": codes})


class ProvePasskeyView(ApiView):
    @describe("Auth", answer=PasskeyOptionsAnswer, errors=("INVALID_STATE",))
    def post(self, request: Request) -> Response:
        """What a passkey has to sign for a change of the second factor: send that as `passkey` with it."""
        factor = checking.factor_of(self.user.pk)
        return ok({"public_key": webauthn.request_options("prove", user=self.user, factor=factor)})


class PasskeyListView(ApiView):
    query_classes = {"GET": PageQuery}  # noqa: RUF012 - declared ClassVar in ApiView

    @describe("Auth", answer=PasskeySerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own passkeys."""
        rows = Passkey.objects.filter(factor__user=self.user)
        return self.page(rows, lambda found: list(PasskeySerializer(found, many=True).data))

    @describe(
        "Auth",
        body=NewPasskeyBody,
        answer=NewPasskeyAnswer,
        status=201,
        errors=("INVALID_CREDENTIALS", "CONFLICT", "QUOTA_EXCEEDED"),
    )
    def post(self, request: Request) -> Response:
        """Register what the browser made of the options. From now on the login asks for a second factor."""
        body = self.body(NewPasskeyBody)
        passkey, _factor, codes = passkeys.register(
            actor=self.actor,
            user=self.user,
            name=body["name"],
            answer=Answer("register", body["credential"]),
            now=timezone.now(),
        )
        return ok({"passkey": PasskeySerializer(passkey).data, "recovery_codes": codes}, status=201)


class PasskeyOptionsView(ApiView):
    @describe("Auth", body=BothBody, answer=PasskeyOptionsAnswer, errors=(*_OF_BOTH, "QUOTA_EXCEEDED"))
    def post(self, request: Request) -> Response:
        """What the browser has to make a passkey of. Nothing changes until it is registered."""
        given = proved(self.body(BothBody), "prove")
        asked = passkeys.begin(actor=self.actor, user=self.user, now=timezone.now(), **given)
        return ok({"public_key": asked})


class PasskeyView(ApiView):
    target: Passkey

    def load(self, request: Request, **kwargs: str) -> Passkey:
        found = Passkey.objects.filter(factor__user=self.user, pk=id_or_404(kwargs["id"])).first()
        if found is None:
            raise not_found()
        return found

    @describe("Auth", body=BothBody, errors=_OF_BOTH)
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's public name
        """Remove a passkey. Without one, and without an authenticator, the second factor is off."""
        given = proved(self.body(BothBody), "prove")
        passkeys.remove(actor=self.actor, user=self.user, passkey_id=self.target.pk, now=timezone.now(), **given)
        return ok(None)
