"""Users and who they are at a provider (data.md, `users`, `identities`). Login sessions live in Redis, not here."""

from collections.abc import Iterable
from typing import Any, ClassVar, Final

import pgtrigger
from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.contrib.postgres.fields import ArrayField
from django.db import models

from apps.common.emails import MAX_CHARACTERS, check_email, email_key
from apps.common.models import BaseModel

OLDER_RELEASE: Final = pgtrigger.Trigger(
    name="email_key",
    when=pgtrigger.Before,
    operation=pgtrigger.Insert | pgtrigger.UpdateOf("email"),  # type: ignore[no-untyped-call]
    func="""
        IF NEW.email_key IS NULL OR (TG_OP = 'UPDATE' AND NEW.email IS DISTINCT FROM OLD.email
                AND NEW.email_key IS NOT DISTINCT FROM OLD.email_key) THEN
            NEW.email_key := CASE WHEN octet_length(NEW.email) = char_length(NEW.email)
                THEN lower(NEW.email COLLATE "C") END;
        END IF;
        RETURN NEW;
    """,
)
"""Keys for what the release before writes, which knows none: of ASCII alone, where nobody disagrees on "lower". What is
left without one is filled by the migration of the next release, which drops this and makes the column NOT NULL.
"""


class UserManager(BaseUserManager["User"]):
    """E-mail is the name: kept as written, looked up by its key (`apps.common.emails`)."""

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email_key=email_key(username or ""))

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A user; without a password one that none logs in. Raises IntegrityError for an e-mail that is taken."""
        user = self.model(email=email, **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A user with all rights, for `manage.py createsuperuser`."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)


class User(BaseModel, AbstractBaseUser, PermissionsMixin):
    """A person: owns devices and tokens; staff see the admin."""

    email = models.EmailField(max_length=MAX_CHARACTERS, validators=[check_email])
    email_key = models.CharField(max_length=MAX_CHARACTERS, editable=False, null=True)  # noqa: DJ001 - as the trigger says
    email_verified_at = models.DateTimeField(null=True, blank=True)
    name = models.CharField(max_length=200, blank=True, default="")
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    oidc_issuer = models.CharField(max_length=255, blank=True, default="")
    oidc_subject = models.CharField(max_length=255, blank=True, default="")
    locale = models.CharField(max_length=16, blank=True, default="")

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        db_table = "users"
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("email_key",), condition=models.Q(email_key__isnull=False), name="users_email_key_unique"
            ),
            models.UniqueConstraint(
                fields=("oidc_issuer", "oidc_subject"),
                condition=~models.Q(oidc_subject=""),
                name="users_oidc_unique",
            ),
        )
        triggers = (OLDER_RELEASE,)

    def __str__(self) -> str:
        return self.email

    def save(self, *args: Any, update_fields: Iterable[str] | None = None, **kwargs: Any) -> None:
        """As Django's; the e-mail's key goes with the e-mail."""
        self.email_key = email_key(self.email)
        if update_fields is not None and "email" in update_fields:
            update_fields = {*update_fields, "email_key"}
        super().save(*args, update_fields=update_fields, **kwargs)


class UserIdentity(BaseModel):
    """Who a user is at an OpenID provider; several a user. `email` and `name` are the provider's last word.

    The oldest one stands in `users.oidc_issuer` and `oidc_subject` too, for the release before.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="identities")
    issuer = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    email = models.CharField(max_length=MAX_CHARACTERS, blank=True, default="")
    name = models.CharField(max_length=200, blank=True, default="")
    refreshed_at = models.DateTimeField(null=True, blank=True, help_text="when the newest claims taken were issued")
    not_before = models.DateTimeField(null=True, blank=True, help_text="tokens issued until then are refused")

    class Meta:
        db_table = "identities"
        verbose_name_plural = "identities"
        ordering = ("-created_at",)
        constraints = (models.UniqueConstraint(fields=("issuer", "subject"), name="identities_subject_unique"),)

    def __str__(self) -> str:
        return f"{self.email or self.name or 'unnamed'} at {self.issuer}"


class MovedIssuer(BaseModel):
    """An issuer whose identities are of another now. What was ended at the old URL is known by a hash with that URL."""

    old = models.CharField(max_length=255)
    new = models.CharField(max_length=255)

    class Meta:
        db_table = "moved_issuers"
        constraints = (models.UniqueConstraint(fields=("old", "new"), name="moved_issuers_unique"),)

    def __str__(self) -> str:
        return f"{self.old} → {self.new}"


class SecondFactor(BaseModel):
    """What a login asks beside the password, once it is confirmed (`apps.accounts.factors`): an authenticator, the
    passkeys that hang on it, or both; and the recovery codes for all of them."""

    user = models.OneToOneField(User, on_delete=models.CASCADE, related_name="second_factor")
    secret_sealed = models.TextField(editable=False, blank=True, default="", help_text="empty: no authenticator")
    offered_sealed = models.TextField(
        editable=False, blank=True, default="", db_default="", help_text="waits for its first code"
    )
    confirmed_at = models.DateTimeField(null=True, blank=True, help_text="on since then")
    last_step = models.BigIntegerField(default=0, help_text="of 30 s each; codes up to it are spent")
    failures = models.PositiveIntegerField(default=0, help_text="wrong codes in a row")
    locked_until = models.DateTimeField(
        null=True, blank=True, help_text="the authenticator's codes are refused until then"
    )
    recovery_hashes = ArrayField(models.CharField(max_length=64), default=list, editable=False)

    class Meta:
        db_table = "second_factors"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"second factor of {self.user}"


class Passkey(BaseModel):
    """A WebAuthn credential. `attested` is what the authenticator told of it: model, id and public key (§6.5.2)."""

    factor = models.ForeignKey(SecondFactor, on_delete=models.CASCADE, related_name="passkeys")
    name = models.CharField(max_length=80)
    credential_id = models.BinaryField(unique=True, editable=False)
    attested = models.BinaryField(editable=False)
    sign_count = models.BigIntegerField(default=0, help_text="how often it has signed, where it counts; never less")
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "passkeys"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.name


class EndedIdentity(models.Model):
    """A subject whose account was ended, or who was unlinked: by a hash, since whom it names has asked to be forgotten.

    No token makes or links an account of theirs again; a login that they begin anew may (`docs/identity.md`).
    """

    holder = models.CharField(max_length=40, primary_key=True)
    ended_at = models.DateTimeField()

    class Meta:
        db_table = "ended_identities"

    def __str__(self) -> str:
        return f"{self.holder[:8]}…"
