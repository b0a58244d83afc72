"""Users (data.md, `users`). Login sessions live in Redis, not here."""

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models
from django.db.models.functions import Lower

from apps.common.models import BaseModel


class UserManager(BaseUserManager["User"]):
    """E-mail is the name, case-insensitive: kept as written, looked up by `lower()`."""

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.annotate(email_lower=Lower("email")).get(email_lower=(username or "").lower())

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

    email = models.EmailField(max_length=254)
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
            models.UniqueConstraint(Lower("email"), name="users_email_lower_unique"),
            models.UniqueConstraint(
                fields=("oidc_issuer", "oidc_subject"),
                condition=~models.Q(oidc_subject=""),
                name="users_oidc_unique",
            ),
        )

    def __str__(self) -> str:
        return self.email
