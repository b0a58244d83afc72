"""The environment, typed: `VISIONA_*` from the process and from `.env`, read once.

It does not know Django: settings.py turns these values into Django's.
"""

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
from dotenv import dotenv_values

from tunnel.contract import PREFIX, SettingError, read_settings

__all__ = ["BASE_DIR", "SettingError", "check", "database_address", "host_of", "load"]

BASE_DIR: Final = Path(__file__).resolve().parent.parent
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+\Z")
_ASYMMETRIC: Final = re.compile(r"(?:RS|PS|ES)(?:256|384|512)|EdDSA|Ed25519")
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


def local_hosts(values: Mapping[str, Any]) -> list[str]:
    """The `Host` values that development serves: this machine's own names and addresses, and what settings say.

    Any other one is a name that somebody made point here (DNS rebinding): a page of theirs would be of our origin.
    """
    name = socket.gethostname()
    hosts = ["localhost", ".localhost", "127.0.0.1", "[::1]", name, f"{name.partition('.')[0]}.local"]
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET:
                hosts.append(each.address)
            elif each.family == socket.AF_INET6:
                hosts.append(f"[{each.address.partition('%')[0]}]")
    if values["BIND_HOST"] not in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, never listened on
        hosts.append(values["BIND_HOST"])
    hosts += [host_of(values[url]) for url in ("PUBLIC_URL", "API_INTERNAL_URL")]
    return list(dict.fromkeys(host for host in hosts if host))


def database_address(values: Mapping[str, Any]) -> dict[str, Any]:
    """How psycopg reaches the database that the settings name: for those who look at it without Django."""
    return {
        "host": values["DB_HOST"],
        "port": values["DB_PORT"],
        "user": values["DB_USER"],
        "password": values["DB_PASSWORD"],
        "dbname": values["DB_NAME"],
        "sslmode": values["DB_SSLMODE"],
    }


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
    _check_s3(values)
    _check_mail(values)
    _check_oidc(values)


def _check_s3(values: Mapping[str, Any]) -> None:
    if bool(values["S3_ACCESS_KEY_ID"]) != bool(values["S3_SECRET_ACCESS_KEY"]):
        raise SettingError(f"{PREFIX}S3_ACCESS_KEY_ID and {PREFIX}S3_SECRET_ACCESS_KEY: one is missing")


def host_of(url: str) -> str:
    """The host that a URL names as Django's list of hosts has it: an IPv6 address in brackets; empty: it names none."""
    host = urlsplit(url).hostname or ""
    return f"[{host}]" if ":" in host else host


def _check_mail(values: Mapping[str, Any]) -> None:
    for name in ("EMAIL_VERIFY_URL", "EMAIL_RESET_URL"):
        if values[name] and "{token}" not in values[name]:
            raise SettingError(f"{PREFIX}{name}: it must hold {{token}}, where the token is to stand")


def _check_oidc(values: Mapping[str, Any]) -> None:
    """The provider's settings, as far as there is one. Raises SettingError."""
    issuer: str = values["OIDC_ISSUER"]
    if not issuer:
        return
    parts = urlsplit(issuer)
    plain = parts.scheme == "http" and values["ENV"] != "production"
    if not parts.hostname or not (parts.scheme == "https" or plain) or parts.query or parts.fragment:
        raise SettingError(f"{PREFIX}OIDC_ISSUER: it must be an https:// URL (http:// in development alone)")
    if not any(values[name] for name in ("OIDC_CLIENT_ID", "OIDC_AUDIENCE", "OIDC_AUTHORIZED_PARTIES")):
        raise SettingError(f"{PREFIX}OIDC_CLIENT_ID: missing, and nothing else says whose tokens are taken")
    if not values["OIDC_ALGORITHMS"] or not all(map(_ASYMMETRIC.fullmatch, values["OIDC_ALGORITHMS"])):
        raise SettingError(f"{PREFIX}OIDC_ALGORITHMS: asymmetric signatures alone, such as RS256, PS256, ES256")
    for page in values["OIDC_REDIRECT_URIS"]:
        scheme, colon, rest = page.partition(":")
        if not colon or not rest or "#" in page or scheme.lower() in ("javascript", "data", "vbscript", "file"):
            raise SettingError(f"{PREFIX}OIDC_REDIRECT_URIS: {page!r} is no page to return to (a URL without #)")
