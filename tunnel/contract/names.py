"""Names, tokens, error codes, the envelope and the choice of a language: what each call between the parts is made of.

Standard library only; no I/O.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

CONTRACT_VERSION: Final = 1
"""Version N of the internal calls; N and N-1 are accepted (header `X-VisionA-Contract`)."""

# --- header names ----------------------------------------------------------------------------------------------------
H_CONTRACT: Final = "X-VisionA-Contract"
H_REQUEST_ID: Final = "X-Request-ID"
H_TUNNEL_SESSION: Final = "X-Tunnel-Session"
H_DEVICE_ID: Final = "X-Device-Id"
H_RELAY_TOKEN: Final = "X-Relay-Token"  # noqa: S105 - a header's name
H_AGENT: Final = "X-VisionA-Agent"  # name/version; features=a,b
H_INSTANCE: Final = "X-VisionA-Instance"
H_SERIAL: Final = "X-VisionA-Serial"
H_CHIP: Final = "X-VisionA-Chip"
H_FIRMWARE: Final = "X-VisionA-Firmware"
H_HANDOVER: Final = "X-VisionA-Handover"
H_LOCAL: Final = "X-VisionA-Local"
"""Which address the agent makes reachable, and whether something listens there: `127.0.0.1:8080; listening=no`."""
LOCAL_ADDRESS: Final = r"[A-Za-z0-9._:\[\]-]{1,255}:[0-9]{1,5}"
"""What such an address looks like: letters that can be shown anywhere."""
H_ANSWER_DEVICE_ID: Final = "X-VisionA-Device-Id"
H_ANSWER_SESSION: Final = "X-VisionA-Tunnel-Session"
H_ANSWER_SESSION_TOKEN: Final = "X-VisionA-Session-Token"  # noqa: S105 - a header's name
H_AGENT_FEATURES: Final = "X-VisionA-Agent-Features"
"""On the daemon's `101` to forward/raw: the features that the agent announced (comma list), for stream reuse."""
H_SHARE: Final = "X-VisionA-Share"
"""On a daemon's call of forward/raw: the stream may be one of many on the same answer (docs/internal-api.md)."""
SECURITY_FIELDS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
"""On every answer of our own that is no page, from either program."""
FEATURE_HANDOVER: Final = "handover"
"""An agent with it connects to another daemon when its own is about to end, before its tunnel there does."""
UPGRADE_STREAM: Final = "visiona-stream"
TUNNEL_PATH: Final = "/tunnel/connect"

# --- WebSocket close codes that the daemon sends (RFC 6455 §7.4 and our own 44xx) -------------------------------------
CLOSE_SHUTDOWN: Final = 1001
CLOSE_RESTART: Final = 1012
CLOSE_REVOKED: Final = 4401
CLOSE_DISABLED: Final = 4403
CLOSE_LIVENESS: Final = 4408
CLOSE_REPLACED: Final = 4409
CLOSE_ABUSE: Final = 4429

# --- tokens -----------------------------------------------------------------------------------------------------------
TokenPrefix = Literal["vAu_", "vAc_", "vAs_"]
LOGIN_PREFIX: Final = "vAu_"
PAIRING_PREFIX: Final = "vAc_"
SESSION_PREFIX: Final = "vAs_"
_TOKEN = re.compile(r"(vA[ucs]_)[0-9a-f]{32}\Z")


def home_of(device_id: str, mount: bytes) -> bytes:
    """Where what a box answers may lead if it is shown path for path, at no `mount`: the raw prefix below which all of
    its paths are shown."""
    return b"" if mount else f"/api/devices/{device_id}/proxy".encode("ascii")


def new_token(prefix: TokenPrefix) -> str:
    """A fresh secret of 128 random bits: `prefix` and 32 hex digits."""
    return prefix + secrets.token_hex(16)


def token_prefix(token: str) -> TokenPrefix | None:
    """The prefix of a well-formed token, None of anything else."""
    match = _TOKEN.match(token)
    return match.group(1) if match else None  # type: ignore[return-value]  # the pattern admits just these three


def hash_token(token: str) -> str:
    """SHA-256 as 64 hex digits: the only form in which a token is stored (128 random bits need no salt)."""
    return hashlib.sha256(token.encode()).hexdigest()


def verify_secret(given: str, accepted: Sequence[str]) -> bool:
    """Whether `given` is one of the `accepted` secrets (the first signs, all verify); constant time in each."""
    found = False
    for secret in accepted:
        found |= hmac.compare_digest(given.encode(), secret.encode())
    return found


# --- request ids and the error envelope -------------------------------------------------------------------------------
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


def request_id_from(inbound: str | None) -> str:
    """The inbound `X-Request-ID` if it is well formed, else a new `req_` + 20 hex."""
    if inbound and _REQUEST_ID.match(inbound):
        return inbound
    return "req_" + secrets.token_hex(10)


ERROR_STATUS: Final[Mapping[str, int]] = {
    "BAD_REQUEST": 400,
    "VALIDATION_ERROR": 400,
    "UNAUTHENTICATED": 401,
    "INVALID_CREDENTIALS": 401,
    "SECOND_FACTOR_REQUIRED": 401,
    "TOKEN_EXPIRED": 401,
    "TOKEN_REVOKED": 401,
    "FORBIDDEN": 403,
    "SIGNATURE_INVALID": 403,
    "ACCOUNT_DISABLED": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "CONFLICT": 409,
    "EMAIL_TAKEN": 409,
    "SERIAL_TAKEN": 409,
    "INVALID_STATE": 409,
    "AMBIGUOUS_DEVICE": 409,
    "PRECONDITION_FAILED": 412,
    "PAYLOAD_TOO_LARGE": 413,
    "URI_TOO_LONG": 414,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "RANGE_NOT_SATISFIABLE": 416,
    "UPGRADE_REQUIRED": 426,
    "RATE_LIMITED": 429,
    "QUOTA_EXCEEDED": 429,
    "HEADERS_TOO_LARGE": 431,
    "INTERNAL_ERROR": 500,
    "NOT_IMPLEMENTED": 501,
    "AGENT_UNREACHABLE": 502,
    "AGENT_BAD_RESPONSE": 502,
    "TUNNEL_DISCONNECTED": 503,
    "DATABASE_UNAVAILABLE": 503,
    "CACHE_UNAVAILABLE": 503,
    "TUNNEL_UNAVAILABLE": 503,
    "OVERLOADED": 503,
    "TUNNEL_TIMEOUT": 504,
}
"""Every code of the public API with its one status (api.md, "Error codes")."""


def error_envelope(code: str, message: str, request_id: str, details: Any = None) -> dict[str, Any]:
    """The body of every error answer; `details` is left out when it is None."""
    error: dict[str, Any] = {"code": code, "message": message, "request_id": request_id}
    if details is not None:
        error["details"] = details
    return {"success": False, "error": error}


# --- the language of messages ---
_CHINESE: Final = ("zh-hant", "zh-tw", "zh-hk")


def language_of(accepted: str, default: str = "en") -> str:
    """The language of messages that an `Accept-Language` value asks for: `en` or `zh-hant`.

    The best weighted of those that we have (RFC 9110 §12.5.4); among equals the first. Simplified Chinese is none of
    ours. Nothing usable: `default`.
    """
    best, weight = default, 0.0
    for part in accepted.lower().split(","):
        tag, _, parameters = part.partition(";")
        word = tag.strip()
        ours = "zh-hant" if word.startswith(_CHINESE) else "en" if word == "en" or word.startswith("en-") else ""
        name, _, value = parameters.strip().partition("=")
        try:
            quality = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            quality = 0.0
        if ours and weight < quality <= 1.0:
            best, weight = ours, quality
    return best
