"""Settings out of an environment: typed, bounded, and refused with one line.

Standard library only; the environment is handed in.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from tunnel.contract.settings import (
    BY_NAME,
    DEV_INTERNAL_SECRET,
    DEV_SECRET_KEY,
    DEV_SIGNING_SECRET,
    PREFIX,
    RETIRED,
    SETTINGS,
    Setting,
    SettingError,
    Side,
)

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def parse_setting(setting: Setting, raw: str) -> Any:
    """The typed value of `raw` (str, int, float, bool, tuple of str). Raises SettingError, never quoting a secret."""
    name, text = PREFIX + setting.name, raw.strip()
    if setting.kind == "str":
        return text
    if setting.kind == "bool":
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise SettingError(f"{name}: {text!r} is neither true nor false")
    if setting.kind in ("csv", "secrets"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if setting.kind == "choice":
        words = dict(setting.choices)
        if text.lower() in words:
            return words[text.lower()]
        raise SettingError(f"{name}: {text!r} is none of {', '.join(words)}")
    if setting.kind == "url":
        return _parse_url(name, text)
    return _parse_number(setting, name, text)


def _parse_url(name: str, text: str) -> str:
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise SettingError(f"{name}: not a URL") from None
    scheme_known = parts.scheme in ("http", "https", "ws", "wss", "redis", "rediss", "unix")
    if not scheme_known or not (parts.netloc or (parts.scheme == "unix" and parts.path)):
        example = "redis://host:6379/0" if "REDIS" in name else "https://host:9000"
        raise SettingError(f"{name}: not a URL with a scheme and a host, as {example} is")
    return text.rstrip("/")


def _parse_number(setting: Setting, name: str, text: str) -> int | float:
    whole = setting.kind != "float"
    try:
        value: int | float = int(text) if whole else float(text)
    except ValueError:
        raise SettingError(f"{name}: {text!r} is not a {'whole ' if whole else ''}number") from None
    low, high = (1, 65535) if setting.kind == "port" else (setting.low, setting.high)
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise SettingError(f"{name}: {text} is out of range ({low} to {high if high is not None else 'any'})")
    return value


def read_settings(environ: Mapping[str, str], side: Side) -> tuple[dict[str, Any], list[str]]:
    """All settings by name (without the prefix), typed, and a warning line for each other `VISIONA_*` name.

    An empty value counts as unset. Raises SettingError for a bad value, an unknown name under `ENV_STRICT`, an
    incomplete database, or what production refuses. URLs that nobody set follow the ports.
    """
    values = {s.name: parse_setting(s, environ.get(PREFIX + s.name, "").strip() or s.default) for s in SETTINGS}
    _follow_ports(values)
    warnings, retired = [], []
    for key in sorted(environ):
        name = key.removeprefix(PREFIX)
        if key.startswith(PREFIX) and name in RETIRED:
            retired.append(f"{key}: not used any more: {RETIRED[name]}")
        elif key.startswith(PREFIX) and name not in BY_NAME:
            near = difflib.get_close_matches(key, [PREFIX + name for name in BY_NAME], n=1, cutoff=0.0)
            warnings.append(f"{key}: unknown setting; the nearest known one is {near[0]}")
    if warnings and values["ENV_STRICT"]:
        raise SettingError("; ".join(warnings))
    warnings += retired
    if side == "api":
        check_database(values)
    if values["ENV"] == "production":
        check_production(values, side)
        if side == "api" and not values["S3_BUCKET"]:
            warnings.append(f"{PREFIX}STORAGE_DIR: only one API host can serve it; with several, set {PREFIX}S3_BUCKET")
    return values, warnings


_FOLLOWED: Final[Mapping[str, tuple[str, ...]]] = {
    "PROXY_INTERNAL_URL": ("PROXY_INTERNAL_PORT",),
    "API_INTERNAL_URL": ("API_PORT",),
    "PUBLIC_URL": ("API_PUBLISHED_PORT", "API_PORT"),
    "TUNNEL_PUBLIC_URL": ("TUNNEL_PUBLISHED_PORT", "TUNNEL_PORT"),
}


def _follow_ports(values: dict[str, Any]) -> None:
    """Let URLs that have their defaults follow the ports: in a copy of `.env.example` they are written down, and with
    one port changed they would name somebody else's program."""
    for name, ports in _FOLLOWED.items():
        default = BY_NAME[name].default
        if values[name] == default:
            values[name] = f"{default.rpartition(':')[0]}:{next(values[port] for port in ports if values[port])}"


def check_database(values: Mapping[str, Any]) -> None:
    """Host, user and name are all set (that server) or all empty (the embedded one). Raises SettingError otherwise."""
    given = {name: bool(values[name]) for name in ("DB_HOST", "DB_USER", "DB_NAME")}
    if any(given.values()) and not all(given.values()):
        missing = ", ".join(PREFIX + name for name, there in given.items() if not there)
        raise SettingError(f"{missing}: missing, while other VISIONA_DB_* are set")


COMPOSE_DB_PASSWORD: Final = "visiona"  # noqa: S105 - what compose.yaml starts PostgreSQL with where nobody sets one
_SECRET_CHARACTERS: Final = 32
_PRODUCTION_SECRETS: Final[Mapping[Side, Mapping[str, str]]] = {
    "api": {
        "SECRET_KEY": DEV_SECRET_KEY,
        "INTERNAL_SECRET": DEV_INTERNAL_SECRET,
        "STORAGE_SIGNING_SECRET": DEV_SIGNING_SECRET,
    },
    "tunnel": {"INTERNAL_SECRET": DEV_INTERNAL_SECRET},
    "agent": {},
}
_PRODUCTION_NEEDS: Final[Mapping[Side, tuple[str, ...]]] = {
    "api": ("DB_HOST", "REDIS_URL"),
    "tunnel": (),
    "agent": (),
}


def check_production(values: Mapping[str, Any], side: Side) -> None:
    """What production refuses. Raises SettingError, which names all that is missing or weak in its one line."""
    faults = list(_weak_secrets(values, _PRODUCTION_SECRETS[side]))
    for name in _PRODUCTION_NEEDS[side]:
        if not values[name]:
            faults.append(f"{PREFIX}{name}: missing, and production starts no embedded server")
    if side == "api":
        faults += [
            f"{PREFIX}{name}: it must be the https:// URL that others reach, not {values[name] or 'empty'}"
            for name in ("PUBLIC_URL", "TUNNEL_PUBLIC_URL")
            if not _reached_safely(values[name])
        ]
        if values["STATIC_USER_ID"]:
            faults.append(f"{PREFIX}STATIC_USER_ID: not in production")
        if values["DB_PASSWORD"] == COMPOSE_DB_PASSWORD:
            faults.append(f"{PREFIX}DB_PASSWORD: production needs one of its own, not that of compose.yaml")
    if faults:
        raise SettingError("; ".join(faults))


def _weak_secrets(values: Mapping[str, Any], secrets: Mapping[str, str]) -> Iterator[str]:
    """A line for each setting whose secrets are missing, the development's, short, or another setting's."""
    owners: dict[str, str] = {}
    for name, default in secrets.items():
        if default in values[name] or not values[name]:
            yield f"{PREFIX}{name}: production needs a secret of its own"
        elif any(len(secret) < _SECRET_CHARACTERS for secret in values[name]):
            yield f"{PREFIX}{name}: a secret of fewer than {_SECRET_CHARACTERS} characters can be guessed"
        for secret in set(values[name]):
            if (owner := owners.setdefault(secret, name)) != name:
                yield f"{PREFIX}{name}: the same secret as {PREFIX}{owner}"


def _reached_safely(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    local = host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1"
    return parts.scheme in ("https", "wss") and bool(host) and not local
