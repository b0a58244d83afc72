"""What the tests of conversions share: signed reports, and files for the reference converter."""

import array
import itertools
import json
import struct
import time
from typing import Any

from apps.webhooks.signing import HEADER, sign
from tests.apps.conftest import Answer, Api

SECRET = "a converter's secret of more than 32 characters"
_reports = itertools.count()


def report(conversion_id: Any, body: Any, *, secret: str = SECRET, at: int | None = None) -> Answer:
    """A signed report; unless its time is given it ends in more blanks than the last, so that none repeats another."""
    raw = json.dumps(body).encode() + (b" " * next(_reports) if at is None else b"")
    moment = int(time.time()) if at is None else at
    name = HEADER.lower().replace("-", "_")
    return Api()("POST", f"/api/conversions/{conversion_id}/callback", raw, **{name: sign([secret], raw, moment)})


def tensors(**values: list[float]) -> bytes:
    """A VTF1 file of tensors with one dimension."""
    out = [b"VTF1", struct.pack("<I", len(values))]
    for name, numbers in values.items():
        out += [struct.pack("<H", len(name)), name.encode(), struct.pack("<BI", 1, len(numbers))]
        out.append(struct.pack(f"<{len(numbers)}f", *numbers))
    return b"".join(out)


def read_quantized(data: bytes) -> tuple[str, dict[str, list[float]]]:
    """The chip and the values of a VTQ1 file, written anew from its description."""
    assert data[:4] == b"VTQ1"
    (length,) = struct.unpack_from("<H", data, 4)
    chip, at = data[6 : 6 + length].decode(), 6 + length
    (count,) = struct.unpack_from("<I", data, at)
    at += 4
    found = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        at += 2 + length
        dimensions, size = struct.unpack_from("<BI", data, at)
        assert dimensions == 1
        (scale,) = struct.unpack_from("<f", data, at + 5)
        at += 9
        found[name] = [value * scale for value in array.array("b", data[at : at + size])]
        at += size
    assert at == len(data)
    return chip, found
