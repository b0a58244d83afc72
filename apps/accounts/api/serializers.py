"""What the account routes take and answer."""

from typing import Any

from rest_framework import serializers

from apps.accounts import demo
from apps.accounts.models import User
from apps.common.fields import EmailField, TextField


class NewAccountBody(serializers.Serializer[Any]):
    email = EmailField()
    password = TextField(min_length=8, max_length=128, trim_whitespace=False)
    name = TextField(max_length=200, allow_blank=True, default="")
    locale = TextField(max_length=16, allow_blank=True, default="")


class LoginBody(serializers.Serializer[Any]):
    email = TextField(max_length=254)
    password = TextField(max_length=1024, trim_whitespace=False)


class ProfileBody(serializers.Serializer[Any]):
    name = TextField(max_length=200, allow_blank=True, required=False)
    locale = TextField(max_length=16, allow_blank=True, required=False)


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
