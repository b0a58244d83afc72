"""One turn of a deployment: a worker's thread carries a model's bytes through the tunnel to the box.

The box's side is docs/box-api.md, "Models": `HEAD` tells where to go on, `PUT`s with `Content-Range` send the rest. A
turn ends done, failed, or given back to the queue: while the device is offline nobody's thread waits. It knows the
store, the registry of tunnels and `deployments`; neither users nor HTTP of ours.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import redis.exceptions
import structlog
from django.conf import settings
from django.db import Error
from django.utils import timezone

from apps.common.database import release_database
from apps.common.errors import DomainError
from apps.common.places import Places
from apps.model_registry import deployments
from apps.model_registry.deployment_models import Deployment, DeploymentStatus
from apps.model_registry.models import ModelStatus
from apps.storage.services import open_range
from apps.tunnels import registry
from apps.tunnels.box_call import Call, CallFailed, Reply, call_box
from apps.tunnels.forwarder import Limits, Route

logger = structlog.get_logger(__name__)

AT_ONCE: Final = 4
"""Deployments that one worker process carries at once, of one owner three: its other threads are for other jobs."""
PART: Final = 8 << 20
"""Bytes in one `PUT`: what is on its way beyond the box's last word, however much the sockets between would hold."""
PLACE_SECONDS: Final = 2
PLACE_SECONDS_MAX: Final = 30
ASKING_A_SECOND: Final = 4
"""Jobs of one owner's that look for a place: the more deployments of its wait, the more seldom each looks."""
BEAT_SECONDS: Final = 1.0
PATIENCE: Final = dt.timedelta(hours=1)
"""How long a deployment waits for a device that is offline, from when bytes moved last."""
ATTEMPTS: Final = 10
"""Failures in a row, while the device is online, without its having more than before; then it is given up."""
BACKOFF_MAX: Final = 15
AWAY_MIN: Final = 2
AWAY_MAX: Final = 30
"""Seconds between looks for a device that is offline: a quarter of the time that it has been, within these."""
STOPPED: Final = "STOPPED"
"""Another has it, it was cancelled, or what it needs is gone."""
LEAVING: Final = "LEAVING"
"""This worker ends."""
AWAY: Final = frozenset({"TUNNEL_DISCONNECTED", "TUNNEL_UNAVAILABLE"})
_COUNT: Final = re.compile(r"[0-9]{1,18}\Z")
_places: Final = Places("deployments", lambda: AT_ONCE)


class Refused(Exception):
    """The box will not have it, now or later."""


class Later(Exception):
    """It may go better in a while; `code` says why it did not."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def run(*, deployment_id: uuid.UUID, turn: int, leaving: Callable[[], bool]) -> None:
    """Carry the deployment on, if `turn` is still its run and there is a place. `leaving`: this worker is to end."""
    owner_id = deployments.owner_of(deployment_id)
    if owner_id is None:
        return
    try:
        with _places.place(str(owner_id)) as free:
            if free:
                deployment = deployments.claim(deployment_id=deployment_id, run=turn, now=timezone.now())
                if deployment is not None:
                    _carry(Transfer(deployment, leaving))
            else:
                waiting = deployments.waiting_of(owner_id)
                seconds = min(PLACE_SECONDS_MAX, max(PLACE_SECONDS, waiting // ASKING_A_SECOND))
                deployments.wait_for_place(deployment_id=deployment_id, run=turn, seconds=seconds)
    finally:
        release_database()


def _carry(transfer: Transfer) -> None:
    """To its end, or back to the queue."""
    held, deployment = transfer.held, transfer.deployment
    try:
        transfer.send()
        deployments.finish(**held, status=DeploymentStatus.DONE, now=timezone.now())
        outcome = "done"
    except Refused as error:
        _fail(transfer, "AGENT_BAD_RESPONSE", str(error))
        outcome = "refused"
    except (Later, CallFailed, DomainError) as error:
        outcome = _put_off(transfer, error.code, str(error))
    logger.info(
        "deployment",
        deployment=str(deployment.pk),
        model=str(deployment.model_id),
        device=str(deployment.device_id),
        outcome=outcome,
        bytes_done=transfer.done,
        request_id=deployment.request_id,
    )


def _put_off(transfer: Transfer, code: str, problem: str) -> str:
    """After a fault: stop, hand on, try later, or give up. What became of it, for the log."""
    now, deployment = timezone.now(), transfer.deployment
    if code == STOPPED:
        gone = _gone(deployment)
        if gone:
            _fail(transfer, "NOT_FOUND", gone)
        return "stopped"
    if code == LEAVING:
        deployments.hand_on(**transfer.held, confirmed=transfer.confirmed, now=now)
        return "handed on"
    attempts = 0 if transfer.gained else deployment.attempts
    since = now if transfer.moved else deployment.moved_at
    away = code in AWAY
    if now - since > PATIENCE if away else attempts + 1 >= ATTEMPTS:
        _fail(transfer, code, _told(code))
        return f"given up: {problem}"
    waited = int((now - since).total_seconds()) // 4
    seconds = min(AWAY_MAX, max(AWAY_MIN, waited)) if away else min(BACKOFF_MAX, 1 << attempts)
    deployments.release(
        **transfer.held,
        confirmed=transfer.confirmed,
        code=code,
        message=_told(code),
        attempts=attempts + (not away),
        seconds=seconds,
        now=now,
    )
    return f"put off: {problem}"


def _fail(transfer: Transfer, code: str, message: str) -> None:
    deployments.finish(**transfer.held, status=DeploymentStatus.FAILED, code=code, message=message, now=timezone.now())


def _told(code: str) -> str:
    return str(DomainError(code).message)


def _gone(deployment: Deployment) -> str:
    """What the deployment needs and has lost; empty: nothing."""
    now = (
        Deployment.objects.select_related("model", "device", "owner")
        .only("model__deleted_at", "device__deleted_at", "owner__is_active")
        .filter(pk=deployment.pk)
        .first()
    )
    if now is None:
        return ""
    if now.model.deleted_at is not None:
        return "The model was deleted."
    if now.device.deleted_at is not None:
        return "The device was unpaired."
    return "" if now.owner.is_active else "The account is disabled."


class Transfer:
    """The bytes of one turn. It is the Control of its own calls: asked four times a second, it beats once a second."""

    def __init__(self, deployment: Deployment, leaving: Callable[[], bool]) -> None:
        self.deployment = deployment
        self.held: dict[str, Any] = {"deployment_id": deployment.pk, "run": deployment.run}
        self.done = deployment.bytes_done
        self.moved = False
        """Bytes left for the box."""
        self.gained = False
        """The box says that it has more than ever before."""
        self.confirmed = deployment.confirmed
        self._leaving = leaving
        self._stopped = ""
        self._beat_at = time.monotonic()
        self._offset = 0
        self._told = deployment.bytes_done
        values = settings.VISIONA
        self._secret = str(values["INTERNAL_SECRET"][0])
        self._limits = Limits(
            request_body=deployment.bytes_total,
            open_seconds=values["PROXY_OPEN_SECONDS"],
            head_seconds=values["PROXY_HEAD_SECONDS"],
            idle_seconds=values["PROXY_IDLE_SECONDS"],
        )

    # --- the worker's word --------------------------------------------------------------------------------------------
    @property
    def ended(self) -> str:
        """Why the running call must end now; empty: go on."""
        if not self._stopped and time.monotonic() - self._beat_at >= BEAT_SECONDS:
            self._beat()
        if not self._stopped and self._leaving():
            self._stopped = LEAVING
        return self._stopped

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        moved, self._told = self.done != self._told, self.done
        try:
            alive = deployments.beat(
                **self.held, bytes_done=self.done, confirmed=self.confirmed, moved=moved, now=timezone.now()
            )
        except Error as error:  # the bytes go on; if it takes long, another has the deployment then
            logger.warning("deployment_not_told", deployment=str(self.deployment.pk), error=type(error).__name__)
            return
        finally:
            release_database()
        if not alive:
            self._stopped = STOPPED

    def _sent(self, count: int) -> None:
        self.done = self._offset + count
        self.moved = self.moved or count > 0

    # --- the box ------------------------------------------------------------------------------------------------------
    def send(self) -> None:
        """Bring the box what it lacks. Raises Refused, Later, CallFailed, and DomainError of the store."""
        model = self.deployment.model
        self._beat()
        if self._stopped:
            raise Later(self._stopped, "it is not ours")
        if model.status != ModelStatus.READY:
            raise Refused("The model is not ready.")
        total, offset = self.deployment.bytes_total, self._where()
        self._arrived(offset)
        self._beat()
        facts = _object(self._call("GET")) if offset == total else {}
        if offset == total and facts.get("status", "ready") != "ready":
            offset = 0
        while offset < total:
            offset, facts = self._put(offset, min(total, offset + PART))
            self._arrived(offset)
        told = str(facts.get("sha256") or "").lower()
        if told and told != model.sha256:
            self._call("DELETE")
            raise Refused("What arrived at the box has another SHA-256 than the model.")

    def _where(self) -> int:
        """How many bytes the box has; 0 if it says nothing of them, or is at another size. Raises as `send`."""
        reply = self._call("HEAD")
        total = self.deployment.bytes_total
        offset, length = reply.value("upload-offset"), reply.value("upload-length")
        if not 200 <= reply.status < 300 or not _COUNT.match(offset) or length not in ("", str(total)):
            return 0
        return min(int(offset), total)

    def _arrived(self, offset: int) -> None:
        """The box has so many bytes."""
        self.done = self._offset = offset
        self.gained = self.gained or offset > self.confirmed
        self.confirmed = max(offset, self.confirmed)

    def _put(self, offset: int, end: int) -> tuple[int, dict[str, Any]]:
        """Send the bytes from `offset` to before `end`; how many the box has now, and what it says."""
        model, total = self.deployment.model, self.deployment.bytes_total
        fields = (
            ("Content-Type", "application/octet-stream"),
            ("Content-Range", f"bytes {offset}-{end - 1}/{total}"),
        )
        with open_range(key=model.object_key, start=offset, length=end - offset) as pieces:
            reply = self._call("PUT", fields=fields, body=pieces, length=end - offset, sent=self._sent)
        if reply.status in (408, 409, 425, 429) or reply.status >= 500:
            # 409: the end of an earlier upload is still under way there, or it has another offset than it said.
            raise Later("AGENT_BAD_RESPONSE", f"the box answered {reply.status}")
        if not 200 <= reply.status < 300:
            raise Refused(f"The box refused the model with status {reply.status}.")
        told = reply.value("upload-offset")
        if told not in ("", str(end)):
            raise Later("AGENT_BAD_RESPONSE", f"the box has {told[:20]} bytes after it was sent up to {end}")
        return end, _object(reply)

    def _call(self, method: str, **more: Any) -> Reply:
        deployment = self.deployment
        request_id = deployment.request_id or f"deployment-{deployment.pk}"
        call = Call(method, f"/api/models/{deployment.model_id}", request_id, **more)
        device_id = str(deployment.device_id)
        try:
            entry = registry.lookup([device_id]).get(device_id)
        except redis.exceptions.RedisError as error:
            raise Later("CACHE_UNAVAILABLE", "the registry does not answer") from error
        if entry is None:
            raise Later("TUNNEL_DISCONNECTED", "the device is offline")
        route = Route(entry.device_id, entry.node_url, entry.session, entry.epoch)
        return call_box(route, call, control=self, limits=self._limits, secret=self._secret)


def _object(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer; empty if it is none."""
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
