"""The keys of the e-mails that are there. Two users of one key have to be told apart by a person: both are named."""

from django.core.management.base import CommandError
from django.db import migrations

from apps.common.emails import email_key

BATCH = 1000


def fill(apps, schema_editor):
    """Raises CommandError with every collision, and changes nothing then."""
    users = apps.get_model("accounts", "User").objects.order_by("created_at", "pk")
    holders = {}
    for row in users.values_list("pk", "email", "created_at", "email_verified_at").iterator(BATCH):
        holders.setdefault(email_key(row[1]), []).append(row)
    collisions = [rows for rows in holders.values() if len(rows) > 1]
    if collisions:
        raise CommandError(told(collisions))
    for key, [(pk, email, *_)] in holders.items():
        # Where the release before changes an e-mail just now, the trigger has made its key.
        users.filter(pk=pk, email=email).exclude(email_key=key).update(email_key=key)


def told(collisions):
    first = (
        f"{len(collisions)} e-mail addresses belong to several accounts, which this release takes for one address. "
        "Give all but one of each another address (manage.py set_email ID ADDRESS) and migrate again; nothing was changed:"
    )
    lines = [first]
    for rows in collisions:
        lines.append(f"  {email_key(rows[0][1])!a}")
        for pk, email, created_at, verified_at in rows:
            state = "confirmed" if verified_at else "not confirmed"
            lines.append(f"    {pk}  {email!a}  {state}, since {created_at:%Y-%m-%d}")
    return "\n".join(lines)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_email_key")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
