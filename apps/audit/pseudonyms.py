"""The trail of somebody who has gone: what was done stays on record, who it was does not.

The table is append-only by trigger; the trigger is lifted here for one kind of change, in transactions of its own.
"""

import hashlib
import secrets
import uuid
from collections.abc import Iterable, Sequence
from typing import Final

import pgtrigger
from django.db import transaction
from django.db.models import Q

from apps.audit.models import AuditEvent
from apps.common.emails import email_key

LABEL: Final = "deleted user"
_TRIGGER: Final = "audit.AuditEvent:append_only"
_BATCH: Final = 1000


def email_hash(email: str) -> str:
    """By which an e-mail is looked for, so that no job has to name it."""
    return hashlib.sha256(email_key(email).encode("utf-8", "surrogatepass")).hexdigest()


def pseudonymise(*, user_id: str, email: str) -> int:
    """Replace the user's id, e-mail, addresses and details in the trail; how many rows. Again: nothing is left to do.

    All rows of one person get one new random name, so that they still tell one story; the name leads nowhere.

    Args:
        email: its `email_hash`: failed logins name an e-mail alone.
    """
    pseudonym = f"deleted-{secrets.token_hex(8)}"
    changed = 0
    while batch := _of(user_id):
        changed += _rename(batch, user_id, pseudonym)
    for page in _failed_logins():
        named = [row.pk for row in page if email_hash(str(row.detail.get("email", ""))) == email]
        changed += _rename(named, user_id, pseudonym) if named else 0
    return changed


def _of(user_id: str) -> list[uuid.UUID]:
    theirs = Q(actor=user_id) | Q(object_type="user", object_id=user_id)
    return list(AuditEvent.objects.filter(theirs).order_by().values_list("pk", flat=True)[:_BATCH])


def _failed_logins() -> Iterable[Sequence[AuditEvent]]:
    """In pages, each of them short work for the database, however long the trail is."""
    rows = AuditEvent.objects.filter(action__in=("user.login_failed", "admin.login_failed")).order_by("pk")
    last = uuid.UUID(int=0)
    while page := list(rows.filter(pk__gt=last).only("pk", "detail")[:_BATCH]):
        last = page[-1].pk
        yield page


def _rename(ids: Sequence[uuid.UUID], user_id: str, pseudonym: str) -> int:
    with transaction.atomic(), pgtrigger.ignore(_TRIGGER):
        rows = AuditEvent.objects.filter(pk__in=ids)
        rows.filter(actor=user_id).update(actor=pseudonym, actor_label=LABEL, address="", detail={})
        rows.filter(object_type="user", object_id=user_id).update(object_id=pseudonym, detail={})
        # What strangers did to the account (failed logins): their address is theirs, the e-mail tried is the user's.
        rows.exclude(actor=pseudonym).update(detail={})
    return len(ids)
