"""How much of each thing a user may have (api.md, "Fair shares and quotas").

What one may have is checked in the transaction that adds it, under the lock of the user's row: of two at once the
second counts what the first has added. The things belong to apps above; their tables are found by name.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.db.models import Count, OuterRef, Q, Subquery, Sum
from django.db.models.functions import Coalesce, Now
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.common.errors import DomainError

RETRY_AFTER: Final = 60


@dataclass(frozen=True, slots=True)
class _Quota:
    """`table`: the model whose rows with `those` count, each as one or as what its column `column` says.

    `passes`: they end by themselves, so that waiting helps.
    """

    setting: str
    table: str
    those: Q
    column: str = ""
    unit: int = 1
    passes: bool = False

    def used(self) -> Subquery:
        """How much of it the user of the outer query has; NULL for nothing."""
        model: Any = apps.get_model(self.table)
        rows = model.objects.filter(self.those, owner=OuterRef("pk")).order_by().values("owner")
        counted = Sum(self.column) if self.column else Count("*")
        return Subquery(rows.annotate(used=counted).values("used"))


_LIVE: Final = Q(deleted_at=None)
QUOTAS: Final[Mapping[str, _Quota]] = {
    "devices": _Quota("DEVICES", "devices.Device", _LIVE),
    "pairing_tokens": _Quota(
        "PAIRING_TOKENS", "pairing.PairingToken", Q(status="issued", expires_at__gt=Now()), passes=True
    ),
    "models": _Quota("MODELS", "model_registry.AIModel", _LIVE),
    "model_bytes": _Quota("MODEL_MB", "model_registry.AIModel", _LIVE, column="size", unit=1 << 20),
    "webhooks": _Quota("WEBHOOKS", "webhooks.Webhook", Q()),
}


@dataclass(frozen=True, slots=True)
class Standing:
    """What a user has of one thing, and may have at most; no limit: None. `early`: until the e-mail is confirmed."""

    used: int
    limit: int | None
    early: bool

    @property
    def left(self) -> int | None:
        """How much more there may be; None: any."""
        return None if self.limit is None else max(0, self.limit - self.used)


def standing(user_id: uuid.UUID, names: Collection[str] = tuple(QUOTAS)) -> dict[str, Standing]:
    """How the user stands with each of the named. One query; empty where there is no such user."""
    return _standings([user_id], names).get(user_id, {})


def check(user_id: uuid.UUID, **more: int) -> None:
    """Whether the user may have so much more of each of these; nobody else adds any until the transaction ends.

    To be called before the rows are locked that are then changed. Raises DomainError QUOTA_EXCEEDED.
    """
    for name, stands in _locked([user_id], list(more)).get(user_id, {}).items():
        if stands.left is not None and more[name] > stands.left:
            raise exceeded(name, stands)


def left(user_ids: Iterable[uuid.UUID], name: str) -> dict[uuid.UUID, Standing]:
    """As `check`, for who will add to one thing of several users' at once: how each stands, under their locks."""
    return {user_id: found[name] for user_id, found in _locked(sorted(set(user_ids)), [name]).items()}


def exceeded(name: str, stands: Standing) -> DomainError:
    """The refusal: 409 where only the user can make room, 429 where time does as well."""
    quota = QUOTAS[name]
    limit = stands.limit or 0
    numbers = {"used": stands.used, "limit": limit}
    text = _("Your account may have no more of these: %(used)d of %(limit)d are in use. Delete what is not needed.")
    if stands.early:
        text = _(
            "Until its e-mail is confirmed your account may have no more of these: %(used)d of %(limit)d are in use."
        )
    details = {"quota": [name], "limit": [str(limit)], "used": [str(stands.used)]}
    return DomainError(
        "QUOTA_EXCEEDED",
        text % numbers,
        details=details,
        status=None if quota.passes else 409,
        retry_after=RETRY_AFTER if quota.passes else None,
    )


# --- inside -----------------------------------------------------------------------------------------------------------
def _locked(user_ids: Collection[uuid.UUID], names: Collection[str]) -> dict[uuid.UUID, dict[str, Standing]]:
    if not any(settings.VISIONA[f"QUOTA_{kind}{QUOTAS[name].setting}"] for name in names for kind in _kinds()):
        return _standings_without_limit(user_ids, names)
    rows = User.objects.select_for_update(no_key=True).filter(pk__in=user_ids).order_by("pk")
    list(rows.values_list("pk"))  # the next statement sees what was committed while this one waited
    return _standings(user_ids, names)


def _standings_without_limit(
    user_ids: Collection[uuid.UUID], names: Collection[str]
) -> dict[uuid.UUID, dict[str, Standing]]:
    return {user_id: {name: Standing(0, None, early=False) for name in names} for user_id in user_ids}


def _standings(user_ids: Collection[uuid.UUID], names: Collection[str]) -> dict[uuid.UUID, dict[str, Standing]]:
    used: dict[str, Any] = {f"used_{name}": Coalesce(QUOTAS[name].used(), 0) for name in names}
    rows: Any = User.objects.filter(pk__in=user_ids).order_by().values("pk", "email_verified_at", **used)
    return {
        row["pk"]: {
            name: Standing(int(row[f"used_{name}"]), *_limit(name, confirmed=row["email_verified_at"] is not None))
            for name in names
        }
        for row in rows
    }


def _kinds() -> tuple[str, ...]:
    return ("", "UNCONFIRMED_") if settings.VISIONA["ENV"] == "production" else ("",)


def _limit(name: str, *, confirmed: bool) -> tuple[int | None, bool]:
    """The limit, and whether it is the smaller one of a user whose e-mail is not confirmed."""
    quota, values = QUOTAS[name], settings.VISIONA
    full: int = values[f"QUOTA_{quota.setting}"]
    early: int = 0 if confirmed or values["ENV"] != "production" else values[f"QUOTA_UNCONFIRMED_{quota.setting}"]
    if early and (not full or early < full):
        return early * quota.unit, True
    return (full * quota.unit or None), False
