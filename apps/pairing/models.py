"""Pairing and session tokens (data.md): stored as SHA-256 of a random secret, and nowhere else."""

from django.conf import settings
from django.db import models

from apps.common.ids import uuid7


class PairingStatus(models.TextChoices):
    """`issued`: not used yet; `paired`: in use by an agent without a session token; `consumed`: exchanged for one."""

    ISSUED = "issued"
    PAIRED = "paired"
    CONSUMED = "consumed"
    REVOKED = "revoked"


class PairingToken(models.Model):
    """What an owner pastes on a box. `expires_at` bounds its first use only."""

    token_hash = models.CharField(primary_key=True, max_length=64, editable=False)
    id = models.UUIDField(default=uuid7, unique=True, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="pairing_tokens")
    name = models.CharField(max_length=200, blank=True, default="")
    expires_at = models.DateTimeField()
    status = models.CharField(max_length=16, choices=PairingStatus.choices, default=PairingStatus.ISSUED)
    device = models.ForeignKey(
        "devices.Device", on_delete=models.SET_NULL, null=True, blank=True, related_name="pairing_tokens"
    )
    instance = models.CharField(max_length=128, blank=True, default="")  # whose first redemption it was
    paired_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "pairing_tokens"
        ordering = ("-created_at",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(status__in=PairingStatus.values), name="pairing_tokens_status_known"
            ),
        )

    def __str__(self) -> str:
        return self.name or str(self.id)


class SessionToken(models.Model):
    """What an agent holds after pairing; rotates after 30 d, ends 365 d after its last use."""

    token_hash = models.CharField(primary_key=True, max_length=64, editable=False)
    id = models.UUIDField(default=uuid7, unique=True, editable=False)
    device = models.ForeignKey("devices.Device", on_delete=models.CASCADE, related_name="session_tokens")
    issued_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)
    rotated_from = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="rotated_to"
    )
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoke_reason = models.CharField(max_length=64, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "session_tokens"
        ordering = ("-issued_at",)

    def __str__(self) -> str:
        return str(self.id)
