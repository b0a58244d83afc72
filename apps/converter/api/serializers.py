"""What the conversion routes take and answer."""

from typing import Any, Final

from rest_framework import serializers

from apps.common.api.fields import PlainField, TextField, UuidField, WholeField
from apps.converter.models import Conversion, ConversionStatus
from apps.model_registry.api.serializers import (
    FilenameField,
    FormatField,
    PartBody,
    Sha256Field,
    UploadAnswer,
)

REPORTS: Final = ("running", "converted", "done", "failed")


class ConversionBody(serializers.Serializer[Any]):
    model_id = UuidField(help_text="A model that is ready.")
    chip = PlainField(max_length=64, help_text="Which chip it is to run on.")


class ConversionSerializer(serializers.ModelSerializer[Conversion]):
    """A conversion."""

    model_id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=ConversionStatus.choices)
    bytes_done = serializers.IntegerField(help_text="Of the source, as far as the converter has told.")
    bytes_total = serializers.IntegerField(source="model.size", help_text="Of the source.")
    error = serializers.CharField(help_text="Why it failed; else empty.")
    result_model_id = serializers.UUIDField(
        source="result_id", allow_null=True, help_text="The new model, `source=converted`; ready when this is `done`."
    )
    finished_at = serializers.DateTimeField(allow_null=True)

    class Meta:
        model = Conversion
        fields = (
            "id",
            "model_id",
            "chip",
            "status",
            "bytes_done",
            "bytes_total",
            "error",
            "result_model_id",
            "created_at",
            "updated_at",
            "finished_at",
        )


class ReportBody(serializers.Serializer[Any]):
    """What the converter tells: `running`, `converted` (a result of this size is to be sent), `done`, `failed`."""

    id = UuidField(
        required=False, help_text="The conversion's: so that the report, as it is signed, is of no other one."
    )
    status = serializers.ChoiceField(choices=REPORTS)
    bytes_done = WholeField(min_value=0, max_value=1 << 53, default=0, help_text="With `running`: read of the source.")
    filename = FilenameField(max_length=255, required=False, help_text="With `converted`: of the result.")
    format = FormatField(max_length=32, required=False, help_text="With `converted`; else the end of the file's name.")
    size = WholeField(min_value=1, max_value=1 << 53, required=False, help_text="With `converted`: of the result.")
    sha256 = Sha256Field(required=False, allow_null=True, help_text="With `converted`: checked when it is done.")
    parts = serializers.ListField(
        child=PartBody(), required=False, max_length=10_000, help_text="With `done`: of a multipart upload alone."
    )
    error = TextField(max_length=500, allow_blank=True, default="", help_text="With `failed`: why, for a person.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in ("filename", "size") if attrs["status"] == "converted" and name not in attrs]
        if missing:
            raise serializers.ValidationError(
                dict.fromkeys(missing, self.fields[missing[0]].error_messages["required"])
            )
        return attrs


class SourceAnswer(serializers.Serializer[Any]):
    url = serializers.CharField(help_text="Good without a login until `expires_at`; takes `Range`.")
    expires_at = serializers.DateTimeField()
    filename = serializers.CharField()
    format = serializers.CharField()
    size = serializers.IntegerField()
    sha256 = serializers.CharField()


class ReportAnswer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=ConversionStatus.choices, help_text="The conversion's, after the report.")
    source = SourceAnswer(  # type: ignore[assignment]  # a field
        required=False, help_text="After `running`: where to fetch the file, anew."
    )
    upload = UploadAnswer(required=False, help_text="After `converted`: how to send the result.")
    model_id = serializers.UUIDField(required=False, help_text="After `done`: the new model.")
