"""The renderer of every answer writes what DRF's own would, by a quicker way."""

import datetime as dt
import decimal
import uuid

import pytest
from django.utils.translation import gettext_lazy
from rest_framework.renderers import JSONRenderer

from apps.common.api.parsers import EnvelopeRenderer
from apps.devices.models import LinkStatus

AT = dt.datetime(2026, 1, 2, 3, 4, 5, 60, tzinfo=dt.UTC)
NESTED: dict[str, object] = {}
for _ in range(400):
    NESTED = {"in": NESTED}


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"success": True, "data": [1, -1, 1.5, None, "", "é 中 🙂", 'a"b\\c/d\x00\x1f\x7f\n\t']},
        {"lines": "a\u2028b\u2029c\u2027\u202a", "\u2028": 1},
        {
            "at": AT,
            "on": AT.date(),
            "for": dt.timedelta(seconds=90),
            "id": uuid.UUID(int=7),
            "d": decimal.Decimal("1.5"),
        },
        {
            "at": [
                AT.replace(microsecond=0),
                AT.replace(tzinfo=None),
                AT.astimezone(dt.timezone(dt.timedelta(hours=8))),
            ],
            "time": [dt.time(1, 2, 3), dt.time(1, 2, 3, 40)],
        },
        {"whole": [2**64, -(2**63) - 1, 10**40]},
        {"status": LinkStatus.ONLINE, "said": gettext_lazy("No device is connected.")},
        {1: "a number as a key", None: 2},
        {"pair": (1, 2), "set": {3}, "bytes": b"x"},
        NESTED,
    ],
)
def test_it_writes_what_drf_writes(data):
    assert EnvelopeRenderer().render(data, "application/json", {}) == JSONRenderer().render(
        data, "application/json", {}
    )


def test_what_drf_refuses_is_refused():
    with pytest.raises(TypeError):
        EnvelopeRenderer().render({"what": object()})
    with pytest.raises(ValueError, match="timezone-aware"):
        EnvelopeRenderer().render({"time": dt.time(1, tzinfo=dt.UTC)})
