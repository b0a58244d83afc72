"""The environment, typed: `VISIONA_*` from the process and from `.env`, read once.

It does not know Django: settings.py turns these values into Django's.
"""

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values

from tunnel.contract import PREFIX, SettingError, read_settings

__all__ = ["BASE_DIR", "SettingError", "check", "load"]

BASE_DIR: Final = Path(__file__).resolve().parent.parent
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+\Z")
_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def load() -> dict[str, Any]:
    """The settings of the control plane by name, without the prefix. The process's environment wins over `.env`.

    Warns on stderr of unknown names. Raises SettingError for a value that cannot be used.
    """
    from_file = {key: value for key, value in dotenv_values(BASE_DIR / ".env").items() if value is not None}
    merged = {**from_file, **os.environ}
    values, warnings = read_settings({k: v for k, v in merged.items() if k.startswith(PREFIX)}, "api")
    check(values)
    for line in warnings:
        print(f"visiona: warning: {line}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
    return values


def check(values: Mapping[str, Any]) -> None:
    """What the control plane asks of its values beyond their types. Raises SettingError."""
    for origin in values["CORS_ALLOWED_ORIGINS"]:
        if not _ORIGIN.match(origin):
            raise SettingError(f"{PREFIX}CORS_ALLOWED_ORIGINS: {origin!r} is no origin (scheme://host, or with a port)")
    for name in ("TRUSTED_PROXIES", "WEBHOOK_PRIVATE_NETWORKS"):
        for given in values[name]:
            try:
                ipaddress.ip_network(given, strict=False)
            except ValueError:
                raise SettingError(f"{PREFIX}{name}: {given!r} is neither an address nor a network") from None
    if values["REDIS_URL"] and not values["REDIS_URL"].startswith(_REDIS_SCHEMES):
        raise SettingError(f"{PREFIX}REDIS_URL: it must start with redis://, rediss:// or unix://")
    for name in ("SECRET_KEY", "INTERNAL_SECRET", "STORAGE_SIGNING_SECRET"):
        if not values[name]:
            raise SettingError(f"{PREFIX}{name}: it names no secret")
    if values["CONVERTER_URL"] and not values["CONVERTER_SECRET"]:
        raise SettingError(f"{PREFIX}CONVERTER_SECRET: missing, while {PREFIX}CONVERTER_URL is set")
    if values["CONVERTER_URL"] and not values["CONVERTER_URL"].startswith(("http://", "https://")):
        raise SettingError(f"{PREFIX}CONVERTER_URL: it must start with http:// or https://")
    if values["DB_POOL_MIN"] > values["DB_POOL_MAX"]:
        raise SettingError(f"{PREFIX}DB_POOL_MIN: above {PREFIX}DB_POOL_MAX")
