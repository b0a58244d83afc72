"""Serials that say nothing: what firmware has where nobody wrote one. Knows texts alone."""

from __future__ import annotations

import re
from typing import Final

_WORDS: Final = frozenset(
    [
        "defaultstring",
        "tobefilledbyoem",
        "oem",
        "none",
        "null",
        "nil",
        "na",
        "notapplicable",
        "notspecified",
        "notavailable",
        "notset",
        "notdefined",
        "unspecified",
        "undefined",
        "unknown",
        "unkown",
        "invalid",
        "empty",
        "blank",
        "default",
        "sn",
        "serial",
        "serialnumber",
        "serialno",
        "noserial",
        "systemserialnumber",
        "chassisserialnumber",
        "baseboardserialnumber",
        "boardserialnumber",
        "sysserial",
        "systemsn",
        "systemproductname",
        "standard",
        "string",
        "test",
        "123456789",
        "1234567890",
        "0123456789",
        "12345678",
        "0123456789abcdef",
    ]
)
_SEPARATORS: Final = re.compile(r"[\W_]+")
_FILLER: Final = re.compile(r"0*|([0-9])\1{5,}|([a-z])\2{3,}|0x0+")


def is_junk(serial: str) -> bool:
    """Whether thousands of boxes say this very serial, so that it tells none of them from another.

    Letters' case, blanks and punctuation do not count: "To be filled by O.E.M.", "Default string", zeros.
    """
    bare = _SEPARATORS.sub("", serial.casefold())
    return bare in _WORDS or _FILLER.fullmatch(bare) is not None
