"""The columns that every table has."""

from django.db import models

from apps.common.ids import uuid7


class BaseModel(models.Model):
    """`id` (UUIDv7), `created_at`, `updated_at` (UTC)."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True
