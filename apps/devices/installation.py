"""Whether the database that is asked is the one whose boxes these are (data.md; docs/database.md, "Epochs").

An API that was started on an empty database, or on another one, knows no box; to tell each of them for good that its
token is unknown would be an answer that is wrong as soon as the mistake is mended. So a database has an identity (it
goes with a dump and with a replica), the registry remembers under which one boxes were admitted last, and a database
that is another, or has not one user, refuses nobody for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from apps.accounts.models import User
from apps.devices.admission_rules import UNKNOWN, Grant, Refusal
from apps.devices.models import Installation
from apps.tunnels import registry

logger = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 30
"""How long a box stays away that this database cannot know."""


def identity() -> str:
    """Of this database; made when it is first asked for."""
    installation, _made = Installation.objects.get_or_create(singleton=True)
    return str(installation.id)


def remember() -> None:
    """Have the registry know that boxes are admitted by this database."""
    registry.remember_database(identity())


def is_foreign() -> bool:
    """Whether the boxes that are connected were admitted by another database, or this one has no user at all."""
    remembered = registry.remembered_database()
    if remembered is not None and remembered != identity():
        logger.error("database_is_another", remembered=remembered, database=identity())
        return True
    return not User.objects.exists()


def excuse(verdicts: Sequence[Grant | Refusal]) -> list[Grant | Refusal]:
    """Verdicts in which an unknown token is none where the database is foreign: those agents come again later."""
    if not any(_unknown(verdict) for verdict in verdicts) or not is_foreign():
        return list(verdicts)
    later = Refusal.of("DATABASE_UNAVAILABLE", retry_after=RETRY_SECONDS)
    return [later if _unknown(verdict) else verdict for verdict in verdicts]


def _unknown(verdict: Grant | Refusal) -> bool:
    return isinstance(verdict, Refusal) and (verdict.error.code, verdict.error.message) == ("UNAUTHENTICATED", UNKNOWN)
