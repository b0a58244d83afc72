"""Reads of pairing and session tokens, scoped to their owner. No token and no hash leaves here."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet

from apps.common.errors import not_found
from apps.pairing.models import PairingToken


def tokens_of(owner_id: uuid.UUID) -> QuerySet[PairingToken]:
    """All pairing tokens that this user was issued, used up and revoked ones too."""
    return PairingToken.objects.filter(owner_id=owner_id)


def token_of(owner_id: uuid.UUID, token_id: uuid.UUID) -> PairingToken:
    """One of them by its public id. Raises DomainError NOT_FOUND, for another user's too."""
    token = PairingToken.objects.filter(owner_id=owner_id, id=token_id).first()
    if token is None:
        raise not_found()
    return token
