"""What an agent says in the head of its upgrade request: pure reading, no decision about who may come in."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from tunnel.contract import (
    H_AGENT,
    H_CHIP,
    H_FIRMWARE,
    H_HANDOVER,
    H_INSTANCE,
    H_LOCAL,
    H_RELAY_TOKEN,
    H_SERIAL,
    LOCAL_ADDRESS,
    PAIRING_PREFIX,
    SESSION_PREFIX,
    Credential,
    token_prefix,
)
from tunnel.daemon.http.messages import Refusal, Request

_AGENT: Final = re.compile(r"[A-Za-z0-9._+-]{1,64}(?:/[A-Za-z0-9._+-]{1,64})?\Z")
_FEATURE: Final = re.compile(r"[a-z0-9-]{1,32}\Z")
_LOCAL: Final = re.compile(rf"(?P<address>{LOCAL_ADDRESS})(?:; ?listening=(?P<listening>yes|no))?\Z")
_MAX_FEATURES: Final = 16
_MAX_FACT: Final = 255  # characters of a serial, chip …: Django judges what they mean


def check_upgrade(request: Request) -> None:
    """RFC 6455 §4.2.1. Raises Refusal 426 for what asks for no (or another) WebSocket, 400 for a bad key."""
    if request.method != "GET":
        raise Refusal("METHOD_NOT_ALLOWED", "agents connect with GET", headers=[("Allow", "GET")])
    if not request.asks_for("websocket"):
        raise Refusal(
            "UPGRADE_REQUIRED",
            "this route needs a WebSocket upgrade",
            headers=[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
        )
    if request.header("sec-websocket-version") != "13":
        raise Refusal(
            "UPGRADE_REQUIRED", "WebSocket version 13 is spoken here", headers=[("Sec-WebSocket-Version", "13")]
        )
    try:
        key = base64.b64decode(request.header("sec-websocket-key") or "", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 16:
        raise Refusal("BAD_REQUEST", "Sec-WebSocket-Key is not 16 bytes in base64")
    if [name for name, value in request.fields if name == "host" and value] != ["host"]:
        raise Refusal("BAD_REQUEST", "not just one Host")
    if request.header("content-length") not in (None, "0") or request.header("transfer-encoding") is not None:
        raise Refusal("BAD_REQUEST", "an upgrade request has no body")


def upgrade_head(request: Request) -> bytes:
    """The request as trio-websocket needs to see it: the handshake's own fields, no credential."""
    key = request.header("sec-websocket-key") or ""
    return (
        "GET /tunnel/connect HTTP/1.1\r\nHost: daemon\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode("ascii")


def credential_token(request: Request) -> str:
    """The token: `Authorization: Bearer`, else `?token=`, else `X-Relay-Token`.

    Raises Refusal 401, and 400 for two fields of one name: which of them counts is not to be guessed.
    """
    for name in ("authorization", H_RELAY_TOKEN.lower()):
        if sum(field == name for field, _ in request.fields) > 1:
            raise Refusal("BAD_REQUEST", f"more than one {name}")
    scheme, _, bearer = (request.header("authorization") or "").partition(" ")
    token = bearer.strip() if scheme.lower() == "bearer" else ""
    token = token or request.query.get("token", "").strip() or (request.header(H_RELAY_TOKEN.lower()) or "").strip()
    if not token:
        raise Refusal("UNAUTHENTICATED", "no token: send Authorization: Bearer vAc_… or vAs_…")
    if token_prefix(token) not in (PAIRING_PREFIX, SESSION_PREFIX):
        raise Refusal("UNAUTHENTICATED", "the token is not known")
    return token


def credential(request: Request, *, session: str, address: str) -> Credential:
    """What Django is asked about this agent. Raises Refusal 401 or 400."""
    asked = Credential(token=credential_token(request), session=session, address=address, request_id=request.request_id)
    agent, features = agent_of(request.header(H_AGENT.lower()))
    asked["agent"] = agent
    asked["features"] = features
    if instance := _fact(request, H_INSTANCE):
        asked["instance"] = instance
    if serial := _fact(request, H_SERIAL):
        asked["serial"] = serial
    if chip := _fact(request, H_CHIP):
        asked["chip"] = chip
    if firmware := _fact(request, H_FIRMWARE):
        asked["firmware"] = firmware
    if handover := _fact(request, H_HANDOVER):
        asked["handover"] = handover
    local, listening = local_of(request.header(H_LOCAL.lower()))
    if local:
        asked["local"] = local
    if listening is not None:
        asked["local_listening"] = listening
    return asked


def local_of(value: str | None) -> tuple[str, bool | None]:
    """(address, whether anything listens there) of `127.0.0.1:8080; listening=no`; ("", None) of what is no such text.

    None as the second: the agent does not say.
    """
    found = _LOCAL.match(value or "")
    if found is None:
        return "", None
    return found["address"], None if found["listening"] is None else found["listening"] == "yes"


def agent_of(value: str | None) -> tuple[str, list[str]]:
    """(name/version, features) of `name/version; features=a,b`; ("", []) of an agent that says nothing usable."""
    name, *parameters = [part.strip() for part in (value or "").split(";")]
    if not _AGENT.match(name):
        return "", []
    features: list[str] = []
    for parameter in parameters:
        key, _, words = parameter.partition("=")
        if key.strip().lower() == "features":
            features += [word.strip().lower() for word in words.split(",")]
    return name, [word for word in dict.fromkeys(features) if _FEATURE.match(word)][:_MAX_FEATURES]


def _fact(request: Request, name: str) -> str:
    value = request.header(name.lower()) or ""
    if len(value) > _MAX_FACT or any(ord(letter) < 32 or ord(letter) > 126 for letter in value):
        rule = f"up to {_MAX_FACT} printable ASCII characters"
        raise Refusal("VALIDATION_ERROR", f"{name}: {rule}", details={name: [rule]})
    return value
