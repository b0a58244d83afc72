"""What the account routes take and answer."""

import re
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.accounts import demo, mail_tokens, passwords
from apps.accounts.models import User, UserIdentity
from apps.accounts.quotas import standing
from apps.common.api.fields import EmailField, PlainField, TextField


@extend_schema_field(
    {
        "type": "string",
        "format": "password",
        "minLength": passwords.MIN_LENGTH,
        "maxLength": passwords.MAX_LENGTH,
        "not": {"enum": list(passwords.COMMON)},
    }
)
class NewPasswordField(TextField):
    """A password to be set: long enough, and none of those that everybody tries first."""

    schema_pattern = passwords.PATTERN

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            min_length=passwords.MIN_LENGTH, max_length=passwords.MAX_LENGTH, trim_whitespace=False, **kwargs
        )

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if passwords.is_too_common(text):
            raise serializers.ValidationError(_("This password is too common."))
        return text


class NewAccountBody(serializers.Serializer[Any]):
    email = EmailField()
    password = NewPasswordField()
    name = PlainField(max_length=200, allow_blank=True, default="")
    locale = PlainField(max_length=16, allow_blank=True, default="")


class Base64Field(PlainField):
    """Bytes in base64url without padding, as WebAuthn's JSON has them."""

    schema_pattern = r"^[A-Za-z0-9_-]+$"
    pattern = re.compile(r"[A-Za-z0-9_-]+\Z")
    sentence = gettext_lazy("Bytes in base64url only.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, **kwargs)


class CredentialBody(serializers.Serializer[Any]):
    """A `PublicKeyCredential` as its `toJSON()` tells it. What else it holds is not looked at."""

    id = Base64Field(max_length=1400)
    rawId = Base64Field(max_length=1400)  # noqa: N815 - WebAuthn's name
    type = serializers.ChoiceField(choices=["public-key"])


class AssertionPart(serializers.Serializer[Any]):
    clientDataJSON = Base64Field(max_length=4096)  # noqa: N815 - WebAuthn's name
    authenticatorData = Base64Field(max_length=4096)  # noqa: N815 - WebAuthn's name
    signature = Base64Field(max_length=8192)


class AttestationPart(serializers.Serializer[Any]):
    clientDataJSON = Base64Field(max_length=4096)  # noqa: N815 - WebAuthn's name
    attestationObject = Base64Field(max_length=16384)  # noqa: N815 - WebAuthn's name


class AssertionBody(CredentialBody):
    """What `navigator.credentials.get` brought back (`toJSON()`)."""

    response = AssertionPart()


class AttestationBody(CredentialBody):
    """What `navigator.credentials.create` brought back (`toJSON()`)."""

    response = AttestationPart()


class ProofBody(serializers.Serializer[Any]):
    """The second factor, where one is on: a code, or what a passkey has signed."""

    code = TextField(
        max_length=64,
        allow_blank=True,
        required=False,
        help_text="Where the account's second factor is on: of the authenticator, or a recovery code.",
    )
    passkey = AssertionBody(required=False, help_text="In the place of `code`: what a passkey of the account signed.")


class LoginBody(ProofBody):
    email = TextField(max_length=254)
    password = TextField(max_length=1024, trim_whitespace=False)


class PasswordAloneBody(serializers.Serializer[Any]):
    email = TextField(max_length=254)
    password = TextField(max_length=1024, trim_whitespace=False)


class PasskeyOptionsAnswer(serializers.Serializer[Any]):
    """For the browser, once and within five minutes."""

    public_key = serializers.DictField(
        help_text="For `PublicKeyCredential.parseCreationOptionsFromJSON` or `parseRequestOptionsFromJSON` (WebAuthn)."
    )


class ProfileBody(serializers.Serializer[Any]):
    """The new e-mail is the account's once the link that is sent to it is opened."""

    name = PlainField(max_length=200, allow_blank=True, required=False)
    locale = PlainField(max_length=16, allow_blank=True, required=False)
    email = EmailField(required=False)
    password = TextField(
        max_length=1024,
        trim_whitespace=False,
        required=False,
        help_text="The present one; needed to change the e-mail.",
    )


class LeaveBody(serializers.Serializer[Any]):
    password = TextField(
        max_length=1024, trim_whitespace=False, required=False, help_text="The present one, where the account has one."
    )
    email = TextField(
        max_length=254,
        required=False,
        help_text="Of an account without a password: its e-mail, and the login must be younger than 15 minutes.",
    )


class MailTokenBody(serializers.Serializer[Any]):
    token = TextField(max_length=mail_tokens.MAX_CHARACTERS, help_text="From the link in the mail.")


class PasswordBody(serializers.Serializer[Any]):
    current = TextField(max_length=1024, trim_whitespace=False)
    new = NewPasswordField()


class ResetBody(serializers.Serializer[Any]):
    email = TextField(max_length=254)


class NewPasswordBody(MailTokenBody):
    password = NewPasswordField()


class OidcCodeBody(serializers.Serializer[Any]):
    code = TextField(max_length=128, help_text="From the fragment `#code=` of the page that the login ended at.")


class IdentityLinkBody(serializers.Serializer[Any]):
    redirect_uri = TextField(
        max_length=2000, help_text="The front end's page to end at: one of `VISIONA_OIDC_REDIRECT_URIS`, exactly."
    )
    password = TextField(
        max_length=1024,
        trim_whitespace=False,
        required=False,
        help_text="The present one, where the account has one; else the login must be younger than 15 minutes.",
    )


class IdentityLinkAnswer(serializers.Serializer[Any]):
    url = serializers.CharField(help_text="Good once, for a minute.")


class IdentitySerializer(serializers.ModelSerializer[UserIdentity]):
    """Who the user is at a provider, by its last word; `refreshed_at`: when that was said."""

    class Meta:
        model = UserIdentity
        fields = ("id", "issuer", "subject", "email", "name", "refreshed_at", "created_at")


class UserSerializer(serializers.ModelSerializer[User]):
    """The `user` object; `id` is a UUID, or the text of the static development user."""

    id = serializers.SerializerMethodField()
    email_verified = serializers.SerializerMethodField()

    class Meta:
        model = User
        fields = ("id", "email", "email_verified", "name", "locale", "created_at", "updated_at")

    def get_id(self, user: User) -> str:
        return demo.public_user_id(user)

    def get_email_verified(self, user: User) -> bool:
        return user.email_verified_at is not None


class StandingSerializer(serializers.Serializer[Any]):
    used = serializers.IntegerField()
    limit = serializers.IntegerField(allow_null=True, help_text="null: none.")


class QuotasSerializer(serializers.Serializer[Any]):
    devices = StandingSerializer()
    pairing_tokens = StandingSerializer(help_text="Those that nobody has used yet.")
    models = StandingSerializer()
    model_bytes = StandingSerializer()
    webhooks = StandingSerializer()


class MeSerializer(UserSerializer):
    """The user, with what the account has and may have."""

    quotas = serializers.SerializerMethodField()

    class Meta(UserSerializer.Meta):
        fields = (*UserSerializer.Meta.fields, "quotas")  # type: ignore[assignment]  # one more

    @extend_schema_field(QuotasSerializer)
    def get_quotas(self, user: User) -> Any:
        return QuotasSerializer(standing(user.pk)).data


class LoginAnswer(serializers.Serializer[Any]):
    user = UserSerializer()
    access_token = serializers.CharField(help_text="Shown once: `vAu_` and 32 hex digits.")
    token_type = serializers.ChoiceField(choices=["Bearer"])
    expires_at = serializers.DateTimeField(help_text="When the login ends in any case.")
    idle_timeout = serializers.IntegerField(help_text="Seconds without use after which it ends earlier.")


class RegisterAnswer(serializers.Serializer[Any]):
    user = UserSerializer()


class SessionSerializer(serializers.Serializer[Any]):
    """An own login session; `current`: the one that asks."""

    id = serializers.UUIDField()
    created_at = serializers.DateTimeField()
    last_used_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    address = serializers.CharField()
    agent = serializers.CharField()
    current = serializers.SerializerMethodField()

    def get_current(self, session: Any) -> bool:
        auth = self.context.get("auth")
        return auth is not None and bool(auth.id == session.id)
