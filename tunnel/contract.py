"""What the control plane and the daemon share: names, tokens, codes, messages and the list of settings.

Standard library only, and no I/O: Django, the daemon and the agent all import this file, each alone.
It does not know Django, Trio, HTTP parsing or how a setting is used.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NotRequired, TypedDict
from urllib.parse import urlsplit

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
H_ANSWER_DEVICE_ID: Final = "X-VisionA-Device-Id"
H_ANSWER_SESSION: Final = "X-VisionA-Tunnel-Session"
H_ANSWER_SESSION_TOKEN: Final = "X-VisionA-Session-Token"  # noqa: S105 - a header's name
H_AGENT_FEATURES: Final = "X-VisionA-Agent-Features"
FEATURE_HANDOVER: Final = "handover"
"""An agent with it connects to another daemon when its own is about to end, before its tunnel there does."""
"""On the daemon's `101` to forward/raw: the features that the agent announced (comma list), for stream reuse."""
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
    "PAYLOAD_TOO_LARGE": 413,
    "URI_TOO_LONG": 414,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "RANGE_NOT_SATISFIABLE": 416,
    "UPGRADE_REQUIRED": 426,
    "RATE_LIMITED": 429,
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


# --- messages of the internal calls (JSON; answers stand in the success envelope's `data`) ----------------------------
MAX_CREDENTIALS: Final = 256


class Credential(TypedDict):
    """One agent that asks to be admitted: an element of `POST /internal/tunnel/authenticate` `{node, credentials}`."""

    token: str
    session: str  # the id (UUID text) that the daemon chose for this tunnel session
    address: str  # the agent's IP address
    request_id: NotRequired[str]
    agent: NotRequired[str]  # name/version, empty for the prototype's agents that say nothing
    features: NotRequired[list[str]]
    instance: NotRequired[str]
    serial: NotRequired[str]
    chip: NotRequired[str]
    firmware: NotRequired[str]
    handover: NotRequired[str]  # the session, at a daemon that drains, that this one takes over from


class Replaced(TypedDict):
    """An older session of the same device on another node, which the daemon closes there with 4409."""

    node_url: str
    session: str
    handover: NotRequired[bool]  # it was handed over: told so instead, finishes its streams and closes with 1012


class Admitted(TypedDict):
    """The answer for an admitted credential, `data.results[i]`."""

    ok: Literal[True]
    device_id: str
    user_id: str
    epoch: int  # raised with each admission; a lower one changes nothing any more
    session_token: str | None  # new or rotated, to be stored by the agent; None: go on as you are
    replaced: Replaced | None


class Refused(TypedDict):
    """The answer for a refused credential, `data.results[i]`; sent to the agent as the JSON error envelope."""

    ok: Literal[False]
    status: int
    code: str
    message: str
    retry_after: NotRequired[int]  # seconds


class SessionFact(TypedDict):
    """One live tunnel session as the daemon tells it in a full heartbeat and at `GET /internal/sessions`."""

    session: str
    device_id: str
    user_id: str
    epoch: int
    connected_at: str  # RFC 3339
    address: str
    agent: str
    features: list[str]
    streams: int
    bytes_in: int
    bytes_out: int
    rtt_ms: float | None


class Heartbeat(TypedDict):
    """`POST /internal/tunnel/heartbeat`, every 10 s; `sessions` only when the last answer asked for it."""

    node: str
    url: str
    version: str
    started_at: str
    sessions_count: int
    streams_count: int
    draining: bool
    sessions: list[SessionFact] | None


class CloseOrder(TypedDict):
    session: str
    code: int
    reason: str


class HeartbeatAnswer(TypedDict):
    close: list[CloseOrder]
    send_sessions: bool  # the next heartbeat, sent at once, carries the full list


class TunnelEvent(TypedDict):
    """An element of `POST /internal/tunnel/events` `{node, events}`; applied only while `epoch` is the device's."""

    type: Literal["connected", "disconnected"]
    device_id: str
    session: str
    epoch: int
    at: str
    reason: str  # "" for connected; else replaced, revoked, disabled, liveness, abuse, closed, drain, error…
    code: int | None
    address: str
    agent: str
    request_id: str
    bytes_in: int
    bytes_out: int
    streams: int  # opened in the session's whole life


class AuthorizeRequest(TypedDict):
    """`POST /internal/authorize`: may this caller reach this device? Asked by a daemon for its fast lane."""

    node: str
    # login: a running stream is asked for again by the `login` of its first answer (a ticket cannot be shown twice)
    kind: Literal["bearer", "ticket", "login", "none"]
    token: str  # the login token, JWT, ticket or `login`; "" for none (the static development user)
    device: str  # a device id as text; "" when the caller named none
    method: str
    path: str  # as the box will see it, raw, without the query
    websocket: bool
    origin: str  # the Origin header, "" when absent
    host: str  # the Host header
    address: str
    request_id: str


class Authorized(TypedDict):
    """The answer `data` for an allowed caller; kept by the daemon for `ttl` seconds (a spent ticket: for this use)."""

    allowed: Literal[True]
    device_id: str
    epoch: int
    session: str  # the tunnel session that the registry knows; "" while it is on its way from one daemon to another
    node_url: str  # internal URL of the daemon that holds it
    user_id: str
    login: str  # names the login session, for invalidation and kind `login`; "" where there is none (then kind `none`)
    ttl: float
    body_max: int
    moving: NotRequired[bool]  # the daemon that holds it drains: there will soon be another session


class Forbidden(TypedDict):
    """The answer `data` for a refused caller; sent to it as the JSON error envelope."""

    allowed: Literal[False]
    status: int
    code: str
    message: str
    details: NotRequired[Any]
    retry_after: NotRequired[int]
    headers: NotRequired[dict[str, str]]  # further ones for the client, of 429 alone


class Invalidate(TypedDict):
    """`POST /internal/authz/invalidate` on a daemon: drop cached authorisations and end the streams they carry."""

    users: list[str]
    logins: list[str]
    devices: list[str]


# --- settings ---------------------------------------------------------------------------------------------------------
PREFIX: Final = "VISIONA_"
Kind = Literal["str", "int", "float", "bool", "csv", "secrets", "url", "port", "choice"]
Side = Literal["api", "tunnel", "agent"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: `VISIONA_` + name. `choices` maps accepted words to the value they stand for."""

    name: str
    kind: Kind
    default: str
    help: str
    choices: tuple[tuple[str, str], ...] = ()
    low: float | None = None
    high: float | None = None


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


class SettingError(ValueError):
    """A value that cannot be used; the text is the one line shown to the operator."""


DEV_SECRET_KEY: Final = "development-only-secret-key-that-production-refuses"  # noqa: S105 - public on purpose
DEV_INTERNAL_SECRET: Final = "development-only-internal-secret"  # noqa: S105 - public on purpose
DEV_SIGNING_SECRET: Final = "development-only-signing-secret"  # noqa: S105 - public on purpose
_CHINESE: Final = ("zh-hant", "zh-tw", "zh-hk")
_LANGUAGES = (("en", "en"), ("zh-hant", "zh-hant"), ("zh-tw", "zh-hant"), ("zh-hk", "zh-hant"))
_LEVELS = (("debug", "debug"), ("info", "info"), ("warn", "warning"), ("warning", "warning"), ("error", "error"))


def _words(*words: str) -> tuple[tuple[str, str], ...]:
    return tuple((word, word) for word in words)


_S = Setting
SETTINGS: Final[tuple[Setting, ...]] = (
    _S(
        "ENV",
        "choice",
        "development",
        "production refuses default secrets and missing settings",
        _words("development", "production"),
    ),
    _S("ENV_STRICT", "bool", "false", "true: an unknown VISIONA_* name is an error, not a warning"),
    _S("API_PORT", "port", "3721", "port of the API (REST, admin, docs, console)"),
    _S("TUNNEL_PORT", "port", "3800", "public port of the daemon: agents"),
    _S("PROXY_INTERNAL_PORT", "port", "3801", "internal port of the daemon; never publish it"),
    _S(
        "PROXY_INTERNAL_URL",
        "url",
        "http://localhost:3801",
        "where the API finds the daemon when the registry names no node",
    ),
    _S(
        "BIND_HOST",
        "str",
        "",
        "address the public ports listen on; empty: 127.0.0.1 in development, 0.0.0.0 in production",
    ),
    _S("INTERNAL_BIND_HOST", "str", "127.0.0.1", "address the daemon's internal port listens on"),
    _S("API_INTERNAL_URL", "url", "http://localhost:3721", "where the daemon finds the API"),
    _S("NODE_URL", "url", "", "internal URL that this daemon announces; empty: http://localhost:PROXY_INTERNAL_PORT"),
    _S("PUBLIC_URL", "url", "http://localhost:3721", "the API as browsers reach it"),
    _S("TUNNEL_PUBLIC_URL", "url", "http://localhost:3800", "the daemon as agents and browsers reach it"),
    _S("SECRET_KEY", "secrets", DEV_SECRET_KEY, "Django's signing key; comma list: the first signs, all verify"),
    _S("INTERNAL_SECRET", "secrets", DEV_INTERNAL_SECRET, "bearer secret between API and daemon; comma list"),
    _S("STORAGE_SIGNING_SECRET", "secrets", DEV_SIGNING_SECRET, "signs presigned storage URLs; comma list"),
    _S("STORAGE_DIR", "str", "var/storage", "folder of the local object storage"),
    _S("MODEL_MAX_SIZE_MB", "int", "100", "largest model file, in MB of 2^20 bytes", low=1, high=1 << 20),
    _S("STORAGE_UPLOAD_SECONDS", "int", "3600", "an upload must begin within this long after init", low=1, high=64800),
    _S("STORAGE_DOWNLOAD_SECONDS", "int", "900", "a download must begin within this long", low=1, high=604800),
    _S("STORAGE_TRANSFERS", "int", "12", "uploads and downloads an API process carries at once", low=1, high=1024),
    _S("S3_BUCKET", "str", "", "bucket for model files on S3 or R2; empty: the local storage"),
    _S("S3_ENDPOINT_URL", "url", "", "S3's address as the API and the worker reach it; empty: AWS"),
    _S("S3_PUBLIC_ENDPOINT_URL", "url", "", "the same as browsers reach it, in presigned URLs; empty: S3_ENDPOINT_URL"),
    _S("S3_REGION", "str", "us-east-1", "region of the bucket; auto for R2"),
    _S("S3_ACCESS_KEY_ID", "str", "", "S3 access key; empty: what boto3 finds (an instance's role)"),
    _S("S3_SECRET_ACCESS_KEY", "str", "", "the secret of that key"),
    _S("S3_PREFIX", "str", "", "a folder in the bucket that all keys lie in"),
    _S("S3_ADDRESSING", "choice", "auto", "how URLs name the bucket", _words("auto", "path", "virtual")),
    _S("SEED_DEMO_DATA", "bool", "false", "true: seed demo data when the API starts"),
    _S("STATIC_USER_ID", "str", "", "development only: calls without a credential act as this demo user"),
    _S("REGISTRATION", "choice", "open", "whether anybody may register", _words("open", "closed")),
    _S("LANGUAGE", "choice", "en", "default language of messages", _LANGUAGES),
    _S("CORS_ALLOWED_ORIGINS", "csv", "http://localhost:3000", "origins that may call the API from a browser"),
    _S("ALLOWED_HOSTS", "csv", "", "host names served; empty: any in development, PUBLIC_URL's in production"),
    _S("TRUSTED_PROXIES", "csv", "", "addresses or networks whose X-Forwarded-* is believed"),
    _S("LOG_LEVEL", "choice", "info", "debug, info, warn, error", _LEVELS),
    _S("DB_HOST", "str", "", "PostgreSQL host; host, user and name all empty: the embedded server"),
    _S("DB_PORT", "port", "5432", "PostgreSQL port"),
    _S("DB_USER", "str", "", "PostgreSQL user"),
    _S("DB_PASSWORD", "str", "", "PostgreSQL password"),
    _S("DB_NAME", "str", "", "PostgreSQL database"),
    _S(
        "DB_SSLMODE",
        "choice",
        "prefer",
        "libpq's sslmode",
        _words("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    ),
    _S("DB_AUTO_MIGRATE", "bool", "true", "the API migrates before it listens; false: it refuses an older schema"),
    _S("DB_POOL_MIN", "int", "2", "idle connections a process keeps", low=0, high=1000),
    _S("DB_POOL_MAX", "int", "16", "connections a process may open", low=1, high=1000),
    _S("DB_DEADLINE_SECONDS", "float", "2", "client-side deadline of a database call", low=0.1, high=600),
    _S("DB_STATEMENT_TIMEOUT_MS", "int", "30000", "PostgreSQL statement_timeout", low=1),
    _S("DB_LOCK_TIMEOUT_MS", "int", "5000", "PostgreSQL lock_timeout", low=1),
    _S("REDIS_URL", "url", "", "Redis or Valkey, redis:// or rediss://; empty: the embedded server"),
    _S("API_WORKERS", "int", "2", "API processes", low=1, high=128),
    _S("API_THREADS", "int", "64", "threads an API process", low=4, high=1024),
    _S(
        "API_LONG_EXCHANGES",
        "int",
        "48",
        "exchanges longer than 5 s that an API process carries at once",
        low=1,
        high=1024,
    ),
    _S("SESSION_IDLE_SECONDS", "int", "43200", "a login ends after this long without use", low=1),
    _S("SESSION_ABSOLUTE_SECONDS", "int", "2592000", "a login ends after this long in any case", low=1),
    _S("THROTTLE_LOGIN", "int", "10", "failed logins a minute for one e-mail and address; 0: no limit", low=0),
    _S("THROTTLE_LOGIN_ADDRESS", "int", "300", "failed logins a minute for one address; 0: no limit", low=0),
    _S("THROTTLE_REGISTER", "int", "60", "registrations a minute for one address; 0: no limit", low=0),
    _S("THROTTLE_API", "int", "20000", "calls of the control plane a minute for one user; 0: no limit", low=0),
    _S("THROTTLE_PROXY", "int", "0", "proxied calls through the API a minute for one user; 0: no limit", low=0),
    _S("THROTTLE_CLUSTER", "int", "0", "calls of the cluster proxy a minute for one user; 0: no limit", low=0),
    _S(
        "THROTTLE_FAST_LANE",
        "int",
        "0",
        "calls of the fast lane a minute for one user; above 0 each is asked about; 0: no limit",
        low=0,
    ),
    _S(
        "THROTTLE_AGENT",
        "int",
        "60",
        "refused attempts a minute with one agent's token and address; 0: no limit",
        low=0,
    ),
    _S("PASSWORD_HASHES", "int", "2", "passwords that an API process hashes at once", low=1, high=64),
    _S("KEEP_DEVICE_EVENTS_DAYS", "int", "90", "device events are kept this long", low=1),
    _S("KEEP_AUDIT_DAYS", "int", "365", "audit events are kept this long", low=1),
    _S("KEEP_JOBS_DAYS", "int", "30", "finished jobs and webhook deliveries are kept this long", low=1),
    _S("KEEP_DELETED_DAYS", "int", "30", "deleted devices and models are purged after this long", low=1),
    _S(
        "WEBHOOK_ALLOW_PRIVATE", "bool", "false", "true: webhooks may go to private and loopback addresses, and by http"
    ),
    _S(
        "WEBHOOK_PRIVATE_NETWORKS",
        "csv",
        "",
        "addresses or networks to which webhooks may go although they are private",
    ),
    _S("WEBHOOK_CONNECT_SECONDS", "float", "5", "to connect to a webhook's receiver", low=0.1, high=60),
    _S("WEBHOOK_TIMEOUT_SECONDS", "float", "15", "for a whole delivery to a webhook's receiver", low=0.1, high=120),
    _S("WEBHOOKS_PER_USER", "int", "20", "webhooks that a user may have", low=0),
    _S("CONVERTER_URL", "url", "", "the external converter of models; empty: conversions answer 501"),
    _S("CONVERTER_SECRET", "secrets", "", "signs calls to and from the converter; comma list"),
    _S("CONVERTER_TIMEOUT_MINUTES", "int", "60", "a conversion that is not done by then has failed", low=1),
    _S("YAMUX_ROLE", "choice", "client", "the daemon's role in yamux", _words("client", "server")),
    _S(
        "PAIRING_TOKEN_RECONNECT",
        "bool",
        "true",
        "agents that name no X-VisionA-Agent may go on using their pairing token",
    ),
    _S("TUNNEL_WORKERS", "int", "1", "daemon processes on this host; each is a node of its own", low=1, high=64),
    _S("TUNNEL_MAX_SESSIONS", "int", "20000", "tunnels that one daemon holds", low=1),
    _S("TUNNEL_MAX_HANDSHAKES", "int", "1024", "agents in the handshake at once", low=1),
    _S("TUNNEL_MAX_STREAMS", "int", "256", "streams open in a tunnel at once", low=1, high=65536),
    _S("TUNNEL_DRAIN_SECONDS", "float", "30", "grace for streams in flight at shutdown", low=0, high=3600),
    _S("TUNNEL_BUFFER_MB", "int", "1024", "bytes that a daemon may hold in buffers, in MB", low=16),
    _S("PROXY_OPEN_SECONDS", "float", "10", "to open a stream to the box", low=0.1, high=600),
    _S("PROXY_HEAD_SECONDS", "float", "60", "to the head of the box's answer", low=0.1, high=86400),
    _S("PROXY_IDLE_SECONDS", "float", "300", "without a byte in either direction", low=0.1, high=86400),
    _S("PROXY_UPGRADE_IDLE_SECONDS", "float", "3600", "the same, of an upgraded connection", low=0.1, high=86400),
    _S(
        "AUTHORIZE_SECONDS",
        "float",
        "5",
        "how long a daemon may keep an authorisation of its fast lane",
        low=0.1,
        high=5,
    ),
    _S(
        "SHARE_SSE",
        "bool",
        "false",
        "true: viewers of one event stream on the fast lane share it; who comes later misses the first events",
    ),
    _S("PROXY_BODY_MAX_BYTES", "int", str(1 << 30), "largest request body through the proxy, inclusive", low=0),
    _S("EMAIL_HOST", "str", "", "SMTP server; empty: development writes mails into EMAIL_DIR, production sends none"),
    _S("EMAIL_PORT", "port", "587", "SMTP port"),
    _S("EMAIL_USER", "str", "", "SMTP user; empty: no login"),
    _S("EMAIL_PASSWORD", "str", "", "SMTP password"),
    _S(
        "EMAIL_SECURITY",
        "choice",
        "starttls",
        "starttls (587), tls from the first byte (465), or none",
        _words("starttls", "tls", "none"),
    ),
    _S("EMAIL_FROM", "str", "VisionA Cloud <no-reply@localhost>", "sender of mails"),
    _S("EMAIL_TIMEOUT_SECONDS", "float", "10", "for each step of a talk with the SMTP server", low=0.5, high=300),
    _S("EMAIL_DIR", "str", "var/mail", "development: folder of the mails where there is no EMAIL_HOST"),
    _S(
        "EMAIL_VERIFY_URL",
        "str",
        "",
        "page that confirms an e-mail, {token} stands for the token; empty: the console of PUBLIC_URL",
    ),
    _S(
        "EMAIL_RESET_URL",
        "str",
        "",
        "page that sets a new password, {token} stands for the token; empty: the console of PUBLIC_URL",
    ),
    _S("EMAIL_VERIFY_SECONDS", "int", "259200", "how long the link that confirms an e-mail is good", low=60),
    _S("EMAIL_RESET_SECONDS", "int", "3600", "how long the link that sets a new password is good", low=60),
    _S("OIDC_ISSUER", "str", "", "issuer URL of the OpenID provider; empty: no OIDC"),
    _S("OIDC_CLIENT_ID", "str", "", "our client id there; empty: its JWTs are taken, but nobody logs in through us"),
    _S("OIDC_CLIENT_SECRET", "str", "", "our client secret there; empty: a public client"),
    _S("OIDC_SCOPES", "str", "openid email profile", "scopes asked for at login"),
    _S("OIDC_AUDIENCE", "csv", "", "audiences (aud) of bearer JWTs; empty with no party: the client id"),
    _S("OIDC_AUTHORIZED_PARTIES", "csv", "", "authorised parties (azp) of bearer JWTs, as Clerk sends them"),
    _S("OIDC_REDIRECT_URIS", "csv", "", "front-end pages that a login may end at; empty: PUBLIC_URL/"),
    _S("OIDC_ALGORITHMS", "csv", "RS256,PS256,ES256", "signatures taken; asymmetric ones only"),
    _S("OIDC_EMAIL_CLAIM", "str", "email", "claim that holds the e-mail; with _verified: whether it is verified"),
    _S("OIDC_TIMEOUT_SECONDS", "float", "5", "for each answer of the provider", low=0.5, high=60),
    _S("AGENT_URL", "url", "", "agent: the daemon's public URL, ws:// or wss:// (http and https are taken alike)"),
    _S("AGENT_LOCAL", "str", "127.0.0.1:8080", "agent: the one local address that can be reached through it"),
    _S("AGENT_PAIRING_TOKEN", "str", "", "agent: redeemed at the first run"),
    _S("AGENT_CREDENTIALS", "str", "", "agent: the credential file; empty: below the user's state folder"),
    _S("AGENT_CA_FILE", "str", "", "agent: a private CA's certificates, PEM"),
    _S("AGENT_SERIAL", "str", "", "agent: the box's serial number"),
    _S("AGENT_CHIP", "str", "", "agent: the box's accelerator chip"),
    _S("AGENT_FIRMWARE", "str", "", "agent: the box's firmware version"),
    _S("AGENT_CONFIG", "str", "", "agent: a settings file of NAME=value lines"),
)
BY_NAME: Final[Mapping[str, Setting]] = {setting.name: setting for setting in SETTINGS}
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
    if parts.scheme not in ("http", "https", "ws", "wss", "redis", "rediss", "unix") or not (
        parts.netloc or parts.path
    ):
        raise SettingError(f"{name}: not a URL with a scheme and a host")
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
    """All settings by name (without the prefix), typed, and a warning line for each unknown `VISIONA_*` name.

    An empty value counts as unset. Raises SettingError for a bad value, an unknown name under `ENV_STRICT`, an
    incomplete database, or what production refuses.
    """
    values = {s.name: parse_setting(s, environ.get(PREFIX + s.name, "").strip() or s.default) for s in SETTINGS}
    warnings = []
    for key in sorted(environ):
        if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in BY_NAME:
            near = difflib.get_close_matches(key, [PREFIX + name for name in BY_NAME], n=1, cutoff=0.0)
            warnings.append(f"{key}: unknown setting; the nearest known one is {near[0]}")
    if warnings and values["ENV_STRICT"]:
        raise SettingError("; ".join(warnings))
    if side == "api":
        check_database(values)
    if values["ENV"] == "production":
        check_production(values, side)
        warnings += [
            f"{PREFIX}{name}: a secret of fewer than 32 characters can be guessed"
            for name in _PRODUCTION_SECRETS[side]
            if any(len(secret) < 32 for secret in values[name])
        ]
        if side == "api" and not values["S3_BUCKET"]:
            warnings.append(f"{PREFIX}STORAGE_DIR: only one API host can serve it; with several, set {PREFIX}S3_BUCKET")
    return values, warnings


def check_database(values: Mapping[str, Any]) -> None:
    """Host, user and name are all set (that server) or all empty (the embedded one). Raises SettingError otherwise."""
    given = {name: bool(values[name]) for name in ("DB_HOST", "DB_USER", "DB_NAME")}
    if any(given.values()) and not all(given.values()):
        missing = ", ".join(PREFIX + name for name, there in given.items() if not there)
        raise SettingError(f"{missing}: missing, while other VISIONA_DB_* are set")


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
    """What production refuses. Raises SettingError naming the first setting that is missing or a default secret."""
    for name, default in _PRODUCTION_SECRETS[side].items():
        if default in values[name] or not values[name]:
            raise SettingError(f"{PREFIX}{name}: production needs a secret of its own")
    for name in _PRODUCTION_NEEDS[side]:
        if not values[name]:
            raise SettingError(f"{PREFIX}{name}: missing, and production starts no embedded server")
    if side == "api" and values["STATIC_USER_ID"]:
        raise SettingError(f"{PREFIX}STATIC_USER_ID: not in production")
