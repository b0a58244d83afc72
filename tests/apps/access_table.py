"""What each route answers to whom. A new route needs a row: `tests/apps/test_access.py` compares with the URL map."""

from dataclasses import dataclass
from typing import Any, Final

PUBLIC: Final = "public"
"""Needs no login; all get the same."""
PAGE: Final = "page"
"""Needs no login and answers no envelope."""
LOGIN: Final = "login"
"""Needs a login, and speaks of the caller's own things alone."""
OBJECT: Final = "object"
"""The path names a thing: its owner's alone, 404 for all others, staff included."""
INTERNAL: Final = "internal"
"""Needs the internal secret; no login opens it."""


@dataclass(frozen=True)
class Row:
    """One method of one route: `status` is its owner's (LOGIN: of all who are logged in, unless `others` is given)."""

    kind: str
    status: int = 200
    of: str = ""
    body: Any = None
    others: int = 0


_PROXIED: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_NO_BOX: Final = 503
"""No daemon runs in these tests: a request that is let through ends as TUNNEL_DISCONNECTED."""

TABLE: Final[dict[str, Row]] = {
    "POST /api/auth/register": Row(PUBLIC, 400, body={}),
    "POST /api/auth/login": Row(PUBLIC, 400, body={}),
    "POST /api/auth/login/passkey": Row(PUBLIC, 400, body={}),
    "POST /api/auth/logout": Row(LOGIN),
    "POST /api/auth/logout-all": Row(LOGIN),
    "GET /api/auth/me": Row(LOGIN),
    "PATCH /api/auth/me": Row(LOGIN, body={"name": "x"}),
    "GET /api/auth/sessions": Row(LOGIN),
    "DELETE /api/auth/sessions/{id}": Row(OBJECT, of="session"),
    "GET /api/auth/identities": Row(LOGIN),
    "POST /api/auth/identities": Row(LOGIN, 400, body={}),
    "POST /api/auth/identities/link": Row(LOGIN, 404, body={}),
    "DELETE /api/auth/identities/{id}": Row(OBJECT, 409, of="identity"),
    "GET /api/auth/second-factor": Row(LOGIN),
    "POST /api/auth/second-factor": Row(LOGIN, 409, body={"password": "x"}),
    "DELETE /api/auth/second-factor": Row(LOGIN, 409, body={"password": "x", "code": "0"}),
    "POST /api/auth/second-factor/confirm": Row(LOGIN, 409, body={"code": "000000"}),
    "POST /api/auth/second-factor/recovery-codes": Row(LOGIN, 409, body={"password": "x", "code": "0"}),
    "DELETE /api/auth/second-factor/authenticator": Row(LOGIN, 409, body={"password": "x", "code": "0"}),
    "POST /api/auth/second-factor/passkey": Row(LOGIN, others=409),
    "GET /api/auth/passkeys": Row(LOGIN),
    "POST /api/auth/passkeys": Row(LOGIN, 400, body={}),
    "POST /api/auth/passkeys/options": Row(LOGIN, 409, body={"password": "x"}),
    "DELETE /api/auth/passkeys/{id}": Row(OBJECT, 409, of="passkey", body={"password": "x"}),
    "POST /api/ws/ticket": Row(LOGIN, 400, body={}),
    **{f"{method} /api/{root}{tail}": Row(LOGIN, _NO_BOX) for method in _PROXIED for root in ("cameras", "inference")
       for tail in ("", "/{path}")},
    "GET /api/devices/scan": Row(LOGIN, _NO_BOX),
    "POST /api/devices/scan": Row(LOGIN, _NO_BOX),
    **{f"{method} /api/devices/{{device_id}}/proxy{tail}": Row(OBJECT, _NO_BOX, of="device") for method in _PROXIED
       for tail in ("", "/{path}")},
    "GET /ws/{path}": Row(LOGIN, 426),
    "GET /healthz": Row(PAGE),
    "GET /api/system/health": Row(LOGIN),
    "GET /api/system/info": Row(LOGIN),
    "GET /api/schema": Row(PAGE),
    "GET /api/docs": Row(PAGE),
    "GET /internal/metrics": Row(INTERNAL),
    "POST /internal/tunnel/authenticate": Row(INTERNAL, body={}),
    "POST /internal/tunnel/heartbeat": Row(INTERNAL, body={}),
    "POST /internal/tunnel/events": Row(INTERNAL, body={}),
    "POST /internal/authorize": Row(INTERNAL, body={}),
    "POST /api/pairing/token": Row(LOGIN, 201, body={}),
    "GET /api/pairing/tokens": Row(LOGIN),
    "DELETE /api/pairing/tokens/{id}": Row(OBJECT, of="pairing token"),
    "GET /api/pairing/status": Row(LOGIN),
    "GET /api/devices": Row(LOGIN),
    "POST /api/devices": Row(LOGIN, 201, body={"serial": "S-2"}),
    "GET /api/devices/{id}": Row(OBJECT, of="device"),
    "PATCH /api/devices/{id}": Row(OBJECT, of="device", body={"name": "x"}),
    "DELETE /api/devices/{id}": Row(OBJECT, of="device"),
    "GET /api/devices/{id}/accelerators": Row(OBJECT, of="device"),
    "GET /api/devices/{id}/events": Row(OBJECT, of="device"),
    "GET /api/models": Row(LOGIN),
    "POST /api/models/init": Row(
        LOGIN, 201, body={"name": "new", "version": "1", "filename": "a.nef", "size": 1, "chips": []}
    ),
    "GET /api/models/{id}": Row(OBJECT, of="model"),
    "PATCH /api/models/{id}": Row(OBJECT, of="model", body={"name": "x"}),
    "DELETE /api/models/{id}": Row(OBJECT, of="model"),
    "POST /api/models/{id}/finalize": Row(OBJECT, of="model"),
    "GET /api/models/{id}/download": Row(OBJECT, of="model"),
    "PUT /storage/{signed}": Row(PUBLIC, 403),
    "GET /storage/{signed}": Row(PUBLIC, 403),
    "GET /api/audit": Row(LOGIN),
    "GET /api/clusters": Row(LOGIN),
    "POST /api/clusters": Row(LOGIN, 201, body={"name": "new"}),
    "GET /api/clusters/{id}": Row(OBJECT, of="cluster"),
    "PATCH /api/clusters/{id}": Row(OBJECT, of="cluster", body={"name": "x"}),
    "DELETE /api/clusters/{id}": Row(OBJECT, of="cluster"),
    "PUT /api/clusters/{id}/members/{device_id}": Row(OBJECT, of="cluster", body={"weight": 2}),
    "DELETE /api/clusters/{id}/members/{device_id}": Row(OBJECT, of="cluster"),
    "GET /api/conversions": Row(LOGIN),
    "POST /api/conversions": Row(LOGIN, 400, body={}),
    "GET /api/conversions/{id}": Row(OBJECT, of="conversion"),
    "DELETE /api/conversions/{id}": Row(OBJECT, of="conversion"),
    "POST /api/conversions/{id}/callback": Row(PUBLIC, 403, of="conversion", body={}),
    "GET /api/webhooks": Row(LOGIN),
    "POST /api/webhooks": Row(LOGIN, 201, body={"url": "https://example.com/hook", "events": ["device.online"]}),
    "GET /api/webhooks/{id}": Row(OBJECT, of="webhook"),
    "PATCH /api/webhooks/{id}": Row(OBJECT, of="webhook", body={"enabled": False}),
    "DELETE /api/webhooks/{id}": Row(OBJECT, of="webhook"),
    "GET /api/webhooks/{id}/deliveries": Row(OBJECT, of="webhook"),
    "POST /api/webhooks/{id}/ping": Row(OBJECT, 201, of="webhook"),
    "POST /api/webhooks/{id}/redeliver": Row(OBJECT, 400, of="webhook", body={}),
    "POST /api/webhooks/{id}/secret": Row(OBJECT, of="webhook"),
    **{f"{method} /api/clusters/{{id}}/proxy{tail}": Row(OBJECT, _NO_BOX, of="cluster") for method in _PROXIED
       for tail in ("", "/{path}")},
    "POST /api/models/{id}/deploy": Row(OBJECT, 400, of="model", body={}),
    "GET /api/deployments": Row(LOGIN),
    "GET /api/deployments/{id}": Row(OBJECT, of="deployment"),
    "DELETE /api/deployments/{id}": Row(OBJECT, of="deployment"),
    "DELETE /api/auth/me": Row(LOGIN, 401, body={}),
    "POST /api/auth/email/verify": Row(PUBLIC, 400, body={}),
    "POST /api/auth/email/verify/resend": Row(LOGIN),
    "POST /api/auth/password": Row(LOGIN, 400, body={}),
    "POST /api/auth/password/reset": Row(PUBLIC, 400, body={}),
    "POST /api/auth/password/reset/confirm": Row(PUBLIC, 400, body={}),
    "GET /api/auth/oidc/login": Row(PUBLIC, 404),
    "GET /api/auth/oidc/callback": Row(PUBLIC, 404),
    "POST /api/auth/oidc/token": Row(PUBLIC, 404, body={}),
    "GET /": Row(PAGE),
    "GET /admin": Row(PAGE, 302),
    "GET /favicon.ico": Row(PAGE, 302),
}  # fmt: skip
