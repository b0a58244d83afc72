"""What the model routes take and answer."""

from __future__ import annotations

import re
from typing import Any, Final

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from apps.common.api.fields import PlainField, TextField, WholeField
from apps.common.moments import moment
from apps.model_registry.models import AIModel, ModelSource, ModelStatus
from apps.model_registry.selectors import MODEL_COLUMNS
from apps.storage.base import Upload

MAX_CHIPS: Final = 16
_FILENAME: Final = re.compile(r"[^\x00-\x1f\x7f/\\]+\Z")
_NAMED: Final = re.compile(r"[^\s.]")
_FORMAT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
_SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}\Z")


class FilenameField(PlainField):
    """The name of a file, without any folder."""

    schema_pattern = r"^[^\u0000-\u001f\u007f/\\]*[^\s\u0000-\u001f\u007f/\\.][^\u0000-\u001f\u007f/\\]*$"
    pattern = _FILENAME
    sentence = _("The name of a file alone: no folder, no control characters.")

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if not _NAMED.search(text):
            raise serializers.ValidationError(self.sentence)
        return text


class FormatField(PlainField):
    schema_pattern = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
    pattern = _FORMAT
    sentence = _("Letters, digits and . _ + - only.")


class Sha256Field(PlainField):
    """A SHA-256 in hex, of either case."""

    schema_pattern = r"^[0-9A-Fa-f]{64}$"
    pattern = _SHA256
    sentence = _("64 hexadecimal digits.")

    def to_internal_value(self, data: Any) -> str:
        return super().to_internal_value(data).lower()


class ChipsField(serializers.ListField):
    """The chips that it runs on; each once."""

    child = PlainField(max_length=64)

    def to_internal_value(self, data: Any) -> list[str]:
        return list(dict.fromkeys(super().to_internal_value(data)))


def _chips(**kwargs: Any) -> ChipsField:
    return ChipsField(max_length=MAX_CHIPS, allow_empty=True, help_text="The chips that it runs on.", **kwargs)


class InitBody(serializers.Serializer[Any]):
    name = PlainField(max_length=200)
    version = PlainField(max_length=64)
    filename = FilenameField(max_length=255, help_text="A name alone, without a folder.")
    size = WholeField(min_value=1, help_text="Bytes.")
    sha256 = Sha256Field(required=False, help_text="In hex; checked when it is finalized.")
    chips = _chips()
    description = TextField(max_length=4000, allow_blank=True, default="")
    format = FormatField(max_length=32, required=False, help_text="By default the end of the file's name.")
    faa_object_key = TextField(
        max_length=512, allow_blank=True, default="", help_text="Its key in the external FAA object system."
    )


class ModelChangeBody(serializers.Serializer[Any]):
    name = PlainField(max_length=200, required=False)
    version = PlainField(max_length=64, required=False)
    description = TextField(max_length=4000, allow_blank=True, required=False)
    format = FormatField(max_length=32, required=False)
    chips = _chips(required=False)
    faa_object_key = TextField(max_length=512, allow_blank=True, required=False)


class PartBody(serializers.Serializer[Any]):
    number = WholeField(min_value=1, max_value=10_000)
    etag = PlainField(max_length=256, help_text="As the answer to the part's PUT said, with or without quotes.")


class FinalizeBody(serializers.Serializer[Any]):
    parts = serializers.ListField(
        child=PartBody(), required=False, max_length=10_000, help_text="Of a multipart upload alone."
    )


class ModelSerializer(serializers.ModelSerializer[AIModel]):
    """A model in one version."""

    # Describes what `shown` makes: named rows, written without DRF's way of a field at a time.
    sha256 = serializers.CharField(allow_null=True, help_text="Lower-case hex; null while it is not known.")
    chips = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = AIModel
        fields = MODEL_COLUMNS
        extra_kwargs: dict[str, Any] = {  # noqa: RUF012 - DRF's own shape
            "source": {"choices": ModelSource.choices},
            "status": {"choices": ModelStatus.choices},
            "size": {"help_text": "Bytes."},
        }


def shown(model: AIModel) -> dict[str, Any]:
    """The model as ModelSerializer describes it; also a named row of `selectors.MODEL_COLUMNS`."""
    return {
        "id": str(model.id),
        "name": model.name,
        "version": model.version,
        "description": model.description,
        "filename": model.filename,
        "format": model.format,
        "chips": list(model.chips),
        "source": str(model.source),
        "status": str(model.status),
        "size": model.size,
        "sha256": model.sha256 or None,
        "faa_object_key": model.faa_object_key,
        "created_at": moment(model.created_at),
        "updated_at": moment(model.updated_at),
    }


class PartAnswer(serializers.Serializer[Any]):
    number = serializers.IntegerField()
    url = serializers.CharField()


class UploadAnswer(serializers.Serializer[Any]):
    """Either one PUT, or one for each part."""

    method = serializers.ChoiceField(choices=["PUT"], required=False)
    url = serializers.CharField(required=False, help_text="Where to PUT the bytes; good without a login.")
    headers = serializers.DictField(
        child=serializers.CharField(), required=False, help_text="All that must be sent beside Content-Length."
    )
    part_size = serializers.IntegerField(required=False, help_text="Bytes of each part but the last.")
    parts = PartAnswer(many=True, required=False, help_text="Of a multipart upload; keep the ETag of each answer.")
    expires_at = serializers.DateTimeField(help_text="Until when it may begin.")


class InitAnswer(serializers.Serializer[Any]):
    model = ModelSerializer()
    upload = UploadAnswer()


class DownloadAnswer(serializers.Serializer[Any]):
    url = serializers.CharField(help_text="Good without a login until `expires_at`; takes `Range`.")
    expires_at = serializers.DateTimeField()


def shown_upload(upload: Upload) -> dict[str, Any]:
    """As UploadAnswer describes it."""
    expires_at = moment(upload.expires_at)
    if upload.parts:
        parts = [{"number": part.number, "url": part.url} for part in upload.parts]
        return {"part_size": upload.part_size, "parts": parts, "expires_at": expires_at}
    return {"method": "PUT", "url": upload.url, "headers": upload.headers, "expires_at": expires_at}
