"""Deployments become an app of their own. Their table stays as `model_registry.0002` made it: the state alone changes.

The content type moves with its id, so that permissions, who has them, and the admin's log go on. The release before
asks for permissions of the app `model_registry`; while it runs beside this one, it finds a copy of them with the same
holders. The next release deletes that copy.
"""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import apps.common.ids

BEFORE = "model_registry"
NOW = "deployments"


def move_content_type(apps, old, new):
    """Give the content type of deployments to the app `new`; None where there is none yet, as in an empty database.

    One that stands there already is deleted: the release before makes its own again whenever it migrates.
    """
    ContentType = apps.get_model("contenttypes", "ContentType")
    LogEntry = apps.get_model("admin", "LogEntry")
    moved = ContentType.objects.filter(app_label=old, model="deployment").first()
    if moved is None:
        return None
    for there in ContentType.objects.filter(app_label=new, model="deployment"):
        LogEntry.objects.filter(content_type=there).update(content_type=moved)
        there.delete()
    moved.app_label = new
    moved.save()
    return moved


def move_to_deployments(apps, schema_editor):
    ContentType = apps.get_model("contenttypes", "ContentType")
    Permission = apps.get_model("auth", "Permission")
    moved = move_content_type(apps, BEFORE, NOW)
    if moved is None:
        return
    copy = ContentType.objects.create(app_label=BEFORE, model="deployment")
    for permission in Permission.objects.filter(content_type=moved):
        copied = Permission.objects.create(content_type=copy, codename=permission.codename, name=permission.name)
        copied.group_set.set(permission.group_set.all())
        copied.user_set.set(permission.user_set.all())


def move_to_model_registry(apps, schema_editor):
    move_content_type(apps, NOW, BEFORE)


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("admin", "0003_logentry_add_action_flag_choices"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("devices", "0002_append_only_by_statement"),
        ("model_registry", "0005_deployments_app"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name="Deployment",
                    fields=[
                        (
                            "id",
                            models.UUIDField(
                                default=apps.common.ids.uuid7, editable=False, primary_key=True, serialize=False
                            ),
                        ),
                        ("created_at", models.DateTimeField(auto_now_add=True)),
                        ("updated_at", models.DateTimeField(auto_now=True)),
                        (
                            "status",
                            models.CharField(
                                choices=[
                                    ("queued", "Queued"),
                                    ("sending", "Sending"),
                                    ("done", "Done"),
                                    ("failed", "Failed"),
                                    ("cancelled", "Cancelled"),
                                ],
                                default="queued",
                                max_length=16,
                            ),
                        ),
                        ("bytes_done", models.BigIntegerField(default=0)),
                        ("bytes_total", models.BigIntegerField()),
                        ("confirmed", models.BigIntegerField(default=0)),
                        ("error_code", models.CharField(blank=True, default="", max_length=64)),
                        ("error_message", models.CharField(blank=True, default="", max_length=500)),
                        ("run", models.BigIntegerField(default=0)),
                        ("attempts", models.IntegerField(default=0)),
                        ("moved_at", models.DateTimeField()),
                        ("beat_at", models.DateTimeField(blank=True, null=True)),
                        ("started_at", models.DateTimeField(blank=True, null=True)),
                        ("finished_at", models.DateTimeField(blank=True, null=True)),
                        ("request_id", models.CharField(blank=True, default="", max_length=64)),
                        (
                            "device",
                            models.ForeignKey(
                                on_delete=django.db.models.deletion.CASCADE,
                                related_name="deployments",
                                to="devices.device",
                            ),
                        ),
                        (
                            "model",
                            models.ForeignKey(
                                on_delete=django.db.models.deletion.CASCADE,
                                related_name="deployments",
                                to="model_registry.aimodel",
                            ),
                        ),
                        (
                            "owner",
                            models.ForeignKey(
                                on_delete=django.db.models.deletion.CASCADE,
                                related_name="deployments",
                                to=settings.AUTH_USER_MODEL,
                            ),
                        ),
                    ],
                    options={
                        "db_table": "deployments",
                        "ordering": ("-created_at",),
                        "indexes": [
                            models.Index(fields=["owner", "created_at"], name="deployments_owner_created"),
                            models.Index(
                                condition=models.Q(("status", "sending")),
                                fields=["beat_at"],
                                name="deployments_sending_beat",
                            ),
                        ],
                        "constraints": [
                            models.UniqueConstraint(
                                condition=models.Q(("status__in", ["queued", "sending"])),
                                fields=("model", "device"),
                                name="deployments_one_active",
                            ),
                            models.CheckConstraint(
                                condition=models.Q(
                                    ("status__in", ["queued", "sending", "done", "failed", "cancelled"])
                                ),
                                name="deployments_status_known",
                            ),
                            models.CheckConstraint(
                                condition=models.Q(
                                    ("bytes_done__gte", 0), ("bytes_done__lte", models.F("bytes_total"))
                                ),
                                name="deployments_bytes_range",
                            ),
                        ],
                    },
                ),
            ],
        ),
        migrations.RunPython(move_to_deployments, move_to_model_registry),
    ]
