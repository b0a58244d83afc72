"""Serializer fields that take just what the schema says: a JSON string is not a number, nor a number a string."""

import datetime as dt
import re
import uuid
from typing import Any, Final

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from apps.common.emails import MAX_CHARACTERS, check_email
from apps.common.ids import as_uuid
from apps.common.moments import bounded

_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f]+\Z")
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}\Z")


class TextField(serializers.CharField):
    """A JSON string (DRF's own would take numbers too). Trimmed; not blank unless `allow_blank`."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class PlainField(TextField):
    """A text of one line, such as a name: no control characters, which would break lines of mails, logs and headers."""

    schema_refused = r"[\u0000-\u001f\u007f]"
    """Stands for the pattern in the schema where the text may be empty."""
    schema_pattern = r"^[^\u0000-\u001f\u007f]*[^\s\u0000-\u001f\u007f][^\u0000-\u001f\u007f]*$"
    pattern: re.Pattern[str] = _PLAIN
    sentence: Any = _("Printable characters only.")

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if text and not self.pattern.match(text):
            raise serializers.ValidationError(self.sentence)
        return text


class MomentField(serializers.DateTimeField):
    """A moment in a query or a body, within the years that everything behind it can reckon with."""

    def to_internal_value(self, value: Any) -> dt.datetime:
        try:
            return bounded(super().to_internal_value(value))
        except (ValueError, OverflowError):
            self.fail("overflow")


class EmailField(serializers.EmailField):
    """A JSON string that is an e-mail address as it can be kept (`apps.common.emails`)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=kwargs.pop("max_length", MAX_CHARACTERS), **kwargs)
        self.validators.append(check_email)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class WholeField(serializers.IntegerField):
    """A JSON integer; neither a string, nor a fraction, nor true."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, float) and data.is_integer():
            data = int(data)  # JSON Schema: 1.0 is an integer
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return super().to_internal_value(data)


class UuidField(serializers.UUIDField):
    """A UUID in its usual form, in a body or a query (DRF's own takes numbers and other forms too)."""

    def to_internal_value(self, data: Any) -> uuid.UUID:
        found = as_uuid(data) if isinstance(data, str) else None
        if found is None:
            self.fail("invalid", value=data)
        return found


class FlagField(serializers.BooleanField):
    """A JSON true or false."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class QueryWholeField(serializers.IntegerField):
    """A whole number in a query: decimal digits, no blanks, no underscores, no fraction."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, str) or not _WHOLE.match(data):
            self.fail("invalid")
        return super().to_internal_value(data)
