"""AI models: what the registry knows of a file of weights (data.md, table `models`)."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models

from apps.common.models import BaseModel
from apps.model_registry.finalization_models import Finalization as Finalization  # Django looks for tables here

LIVE = models.Q(deleted_at=None)


class ModelStatus(models.TextChoices):
    """`pending`: promised, its bytes not yet checked; `checking`: a worker is at it; `ready`: they are there.

    `failed`: data.md's, set by nobody.
    """

    PENDING = "pending"
    CHECKING = "checking"
    READY = "ready"
    FAILED = "failed"


class ModelSource(models.TextChoices):
    """Where its bytes came from."""

    UPLOAD = "upload"
    CONVERTED = "converted"
    BUILTIN = "builtin"


class AIModel(BaseModel):
    """A model in one version. `ready` is written only after its bytes lie under `object_key`, whole and checked.

    Attributes:
        owner: None for the built-in ones, which everybody may read and nobody may change through the API.
        size: in bytes; as promised at init, and since `ready` as it is.
        sha256: lower-case hex; empty while pending if the uploader named none.
        object_key: where the bytes lie once it is ready; fixed at init, so that whatever breaks off is found by it.
        upload_key: where an upload puts them before they are checked; empty once there is nothing there.
        upload_id: S3's name of a multipart upload; empty for any other.
        upload_begun_at: when the present upload was promised; a day later it is given up.
    """

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="models", null=True, blank=True
    )
    name = models.CharField(max_length=200)
    version = models.CharField(max_length=64)
    description = models.TextField(blank=True, default="")
    filename = models.CharField(max_length=255)
    format = models.CharField(max_length=32, blank=True, default="")
    chips = ArrayField(models.CharField(max_length=64), blank=True, default=list)
    source = models.CharField(max_length=16, choices=ModelSource.choices, default=ModelSource.UPLOAD)
    status = models.CharField(max_length=16, choices=ModelStatus.choices, default=ModelStatus.PENDING)
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64, blank=True, default="")
    object_key = models.CharField(max_length=255, unique=True)
    upload_key = models.CharField(max_length=255, blank=True, default="")
    upload_id = models.CharField(max_length=1024, blank=True, default="")
    upload_begun_at = models.DateTimeField(null=True, blank=True)
    faa_object_key = models.CharField(max_length=512, blank=True, default="")
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "models"
        verbose_name = "model"
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("owner", "name", "version"), condition=LIVE, name="models_owner_name_version_unique"
            ),
            # PostgreSQL 14 takes NULLs for different from each other: the built-in ones need a rule of their own.
            models.UniqueConstraint(
                fields=("name", "version"), condition=LIVE & models.Q(owner=None), name="models_builtin_unique"
            ),
            models.CheckConstraint(condition=models.Q(status__in=ModelStatus.values), name="models_status_known"),
            models.CheckConstraint(condition=models.Q(source__in=ModelSource.values), name="models_source_known"),
            models.CheckConstraint(
                condition=models.Q(owner=None, source=ModelSource.BUILTIN)
                | (models.Q(owner__isnull=False) & ~models.Q(source=ModelSource.BUILTIN)),
                name="models_builtin_ownerless",
            ),
            models.CheckConstraint(condition=models.Q(size__gt=0), name="models_size_positive"),
            models.CheckConstraint(
                condition=~models.Q(status=ModelStatus.READY) | ~models.Q(sha256=""), name="models_ready_checked"
            ),
        )
        indexes = (
            models.Index(fields=("owner", "created_at"), condition=LIVE, name="models_owner_created_live"),
            GinIndex(fields=("chips",), condition=LIVE, name="models_chips_live"),
            models.Index(
                fields=("upload_begun_at",), condition=models.Q(status=ModelStatus.PENDING), name="models_pending_since"
            ),
            models.Index(
                fields=("deleted_at",), condition=models.Q(deleted_at__isnull=False), name="models_deleted_at"
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} {self.version}"
