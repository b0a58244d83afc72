"""A daemon as Django sees it: the internal calls with the secret, and agents' credentials."""

import datetime as dt
import uuid
from typing import Any

from django.conf import settings
from django.utils import timezone

from apps.accounts.models import User
from apps.common import redis
from apps.common.actor import Actor
from apps.devices.models import Device
from apps.pairing import services
from apps.pairing.models import PairingToken
from apps.tunnels import registry
from tests.apps.conftest import Answer, Api

ACTOR = Actor.system("tests")
NODE = "0198c000-0000-7000-8000-000000000001"
URL = "http://127.0.0.1:1"  # nobody listens: closes are left to heartbeats


def settle() -> None:
    """As if the registry were old: what it does not hold is offline."""
    redis.client().set(f"{registry.PREFIX}since", 0)


def online_device(owner: User) -> Device:
    """One whose tunnel a `Daemon` that has beaten holds, by the registry's word."""
    device = Device.objects.create(owner=owner, name="box", epoch=3)
    session = registry.Session(str(device.pk), str(uuid.uuid4()), 3, str(owner.pk), timezone.now().isoformat())
    assert registry.put(NODE, [session])[0].verdict == "ok"
    return device


class Daemon:
    """One node; `beat` makes it known, `ask` admits agents."""

    def __init__(self, node: str = NODE, url: str = URL) -> None:
        self.node = node
        self.url = url
        self.started = timezone.now()
        self.api = Api()

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        secret = settings.VISIONA["INTERNAL_SECRET"][0]
        return self.api("POST", f"/internal/tunnel/{path}", body, **{"authorization": f"Bearer {secret}", **headers})

    def beat(
        self, sessions: list[dict[str, Any]] | None = None, count: int | None = None, digest: str | None = None
    ) -> Any:
        total = count if count is not None else len(sessions or [])
        body = {
            "node": self.node,
            "url": self.url,
            "version": "1",
            "started_at": self.started.isoformat(),
            "sessions_count": total,
            "streams_count": 0,
            "draining": False,
            "sessions": sessions,
        }
        if digest is not None:
            body["digest"] = digest
        return self.post("heartbeat", body).data

    def authorize(self, **fields: Any) -> Answer:
        """May this caller reach this device?"""
        body = {
            "node": self.node, "kind": "bearer", "token": "", "device": "", "method": "GET", "path": "/x",
            "websocket": False, "origin": "", "host": "tunnel.example", "address": "192.0.2.9", "request_id": "req_1",
            **fields,
        }  # fmt: skip
        secret = settings.VISIONA["INTERNAL_SECRET"][0]
        return self.api("POST", "/internal/authorize", body, authorization=f"Bearer {secret}")

    def ask_all(self, *credentials: dict[str, Any]) -> list[Any]:
        answer = self.post("authenticate", {"node": self.node, "credentials": list(credentials)})
        results: list[Any] = answer.data["results"]
        assert len(results) == len(credentials)
        return results

    def ask(self, token: str, **fields: Any) -> Any:
        return self.ask_all(credential(token, **fields))[0]

    def tell(self, *events: dict[str, Any]) -> int:
        applied: int = self.post("events", {"node": self.node, "events": list(events)}).data["applied"]
        return applied


def credential(token: str, **fields: Any) -> dict[str, Any]:
    return {"token": token, "session": str(uuid.uuid4()), "address": "192.0.2.7", "request_id": "req_agent", **fields}


def named(token: str, instance: str = "box-1", **fields: Any) -> dict[str, Any]:
    """An agent that says its name, as ours does."""
    return credential(token, agent="visiona-agent/0.1.0", features=["keepalive"], instance=instance, **fields)


def fact(admitted: dict[str, Any], session: str) -> dict[str, Any]:
    """The session as its daemon lists it."""
    return {
        "session": session,
        "device_id": admitted["device_id"],
        "user_id": admitted["user_id"],
        "epoch": admitted["epoch"],
        "connected_at": "2026-01-01T00:00:00Z",
        "address": "192.0.2.7",
        "agent": "",
        "features": [],
        "streams": 0,
        "bytes_in": 0,
        "bytes_out": 0,
        "rtt_ms": None,
    }


def event(kind: str, admitted: dict[str, Any], session: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "device_id": admitted["device_id"],
        "session": session,
        "epoch": admitted["epoch"],
        "at": timezone.now().isoformat(),
        "reason": "" if kind == "connected" else "closed",
        "code": None if kind == "connected" else 1000,
        "address": "192.0.2.7",
        "agent": "",
        "request_id": "req_agent",
        "bytes_in": 1,
        "bytes_out": 2,
        "streams": 3,
        **fields,
    }


def issue(owner: User, name: str = "", ttl_minutes: int = 60, now: dt.datetime | None = None) -> str:
    """A pairing token's secret."""
    issued = services.issue_token(
        actor=ACTOR, owner_id=owner.pk, name=name, ttl_minutes=ttl_minutes, now=now or timezone.now()
    )
    return issued.secret


def row(secret: str) -> PairingToken:
    return PairingToken.objects.get(token_hash=services.hash_token(secret))


def device_of(admitted: dict[str, Any]) -> Device:
    return Device.objects.get(id=admitted["device_id"])
