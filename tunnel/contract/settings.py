"""The one list of settings: every `VISIONA_` name, its kind, default and bounds (docs/decisions/0001).

Standard library only; it does not know how a setting is read or used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

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


class SettingError(ValueError):
    """A value that cannot be used; the text is the one line shown to the operator."""


DEV_SECRET_KEY: Final = "development-only-secret-key-that-production-refuses"  # noqa: S105 - public on purpose
DEV_INTERNAL_SECRET: Final = "development-only-internal-secret"  # noqa: S105 - public on purpose
DEV_SIGNING_SECRET: Final = "development-only-signing-secret"  # noqa: S105 - public on purpose
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
    _S("INTERNAL_BIND_HOST", "str", "127.0.0.1", "address the internal ports listen on: the daemon's, the worker's"),
    _S("WORKER_METRICS_PORT", "int", "0", "port of the worker's metrics; 0: none", low=0, high=65535),
    _S("API_INTERNAL_URL", "url", "http://localhost:3721", "where the daemon finds the API"),
    _S("NODE_URL", "url", "", "internal URL that this daemon announces; empty: http://localhost:PROXY_INTERNAL_PORT"),
    _S("PUBLIC_URL", "url", "http://localhost:3721", "the API as browsers reach it"),
    _S("TUNNEL_PUBLIC_URL", "url", "http://localhost:3800", "the daemon as agents and browsers reach it"),
    _S("API_PUBLISHED_PORT", "int", "0", "the API's port as this machine publishes it; 0: API_PORT", low=0, high=65535),
    _S("TUNNEL_PUBLISHED_PORT", "int", "0", "the daemon's, likewise; 0: TUNNEL_PORT", low=0, high=65535),
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
    _S("S3_CA_FILE", "str", "", "certificates (PEM) that S3's own must be signed by; empty: the public ones"),
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
    _S("REDIS_TIMEOUT_SECONDS", "float", "1", "to wait for any answer of Redis", low=0.1, high=600),
    _S("API_WORKERS", "int", "2", "API processes", low=1, high=128),
    _S("API_THREADS", "int", "64", "threads an API process", low=4, high=1024),
    _S("API_PINNED", "bool", "true", "an API process keeps its threads on one core; false: the kernel spreads them"),
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
    _S("REQUIRE_STAFF_MFA", "bool", "false", "true: no use of the admin without a second factor"),
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
    _S("QUOTA_DEVICES", "int", "1000", "devices that a user may have; 0: any number, as with all quotas", low=0),
    _S("QUOTA_PAIRING_TOKENS", "int", "100", "pairing tokens of a user that nobody has used yet", low=0),
    _S("QUOTA_MODELS", "int", "500", "models that a user may have", low=0),
    _S("QUOTA_MODEL_MB", "int", "20480", "what a user's models may hold together, in MB of 2^20 bytes", low=0),
    _S("QUOTA_WEBHOOKS", "int", "20", "webhooks that a user may have", low=0),
    _S("QUOTA_UNCONFIRMED_DEVICES", "int", "10", "the same in production, until the e-mail is confirmed", low=0),
    _S("QUOTA_UNCONFIRMED_PAIRING_TOKENS", "int", "20", "likewise", low=0),
    _S("QUOTA_UNCONFIRMED_MODELS", "int", "10", "likewise", low=0),
    _S("QUOTA_UNCONFIRMED_MODEL_MB", "int", "1024", "likewise", low=0),
    _S("QUOTA_UNCONFIRMED_WEBHOOKS", "int", "2", "likewise", low=0),
    _S("CONVERTER_URL", "url", "", "the external converter of models; empty: conversions answer 501"),
    _S("CONVERTER_SECRET", "secrets", "", "signs calls to and from the converter; comma list"),
    _S("CONVERTER_TIMEOUT_MINUTES", "int", "60", "a conversion that is not done by then has failed", low=1),
    _S(
        "LAMEDUCK_SECONDS",
        "float",
        "0",
        "after SIGTERM API and daemon are not ready, yet serve as before for this long",
        low=0,
        high=600,
    ),
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
    _S("AGENT_URL", "str", "", "agent: the daemon's public URL, ws:// or wss:// (http and https are taken alike)"),
    _S("AGENT_LOCAL", "str", "127.0.0.1:8080", "agent: the one local address that can be reached through it"),
    _S("AGENT_PAIRING_TOKEN", "str", "", "agent: redeemed at the first run"),
    _S("AGENT_CREDENTIALS", "str", "", "agent: the credential file; empty: below the user's state folder"),
    _S("AGENT_CA_FILE", "str", "", "agent: a private CA's certificates, PEM"),
    _S("AGENT_SERIAL", "str", "", "agent: the box's serial number"),
    _S("AGENT_CHIP", "str", "", "agent: the box's accelerator chip"),
    _S("AGENT_FIRMWARE", "str", "", "agent: the box's firmware version"),
    _S("AGENT_CONFIG", "str", "", "agent: a settings file of NAME=value lines"),
)

RETIRED: Final[Mapping[str, str]] = {
    "API_LONG_EXCHANGES": "an exchange that lasts holds no thread",
}
"""Names that the release before knew, and why nothing reads them now; the next release knows them no more."""
BY_NAME: Final[Mapping[str, Setting]] = {setting.name: setting for setting in SETTINGS}
