"""A column for the key of an e-mail, empty at first, and a trigger that fills it for the release before."""

import pgtrigger.compiler
import pgtrigger.migrations
from django.db import migrations, models

import apps.common.emails


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("auth", "0012_alter_user_first_name_max_length"),
    ]

    operations = [
        migrations.AddField(
            model_name="user",
            name="email_key",
            field=models.CharField(editable=False, max_length=254, null=True),
        ),
        migrations.AlterField(
            model_name="user",
            name="email",
            field=models.EmailField(max_length=254, validators=[apps.common.emails.check_email]),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name="user",
            trigger=pgtrigger.compiler.Trigger(
                name="email_key",
                sql=pgtrigger.compiler.UpsertTriggerSql(
                    func="\n        IF NEW.email_key IS NULL OR (TG_OP = 'UPDATE' AND NEW.email IS DISTINCT FROM OLD.email\n                AND NEW.email_key IS NOT DISTINCT FROM OLD.email_key) THEN\n            NEW.email_key := CASE WHEN octet_length(NEW.email) = char_length(NEW.email)\n                THEN lower(NEW.email COLLATE \"C\") END;\n        END IF;\n        RETURN NEW;\n    ",
                    hash="b93852060c1b699f0d6c97d8c9e6c1cc00171502",
                    operation='INSERT OR UPDATE OF "email"',
                    pgid="pgtrigger_email_key_923aa",
                    table="users",
                    when="BEFORE",
                ),
            ),
        ),
    ]
