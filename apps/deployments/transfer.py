"""Sending a model's bytes through the tunnel to the box, by one job of a worker.

The box's side is docs/box-api.md, "Models": `HEAD` tells where to go on, `PUT`s with `Content-Range` send the rest. The
job ends with the deployment done, failed, or back in the queue: no thread waits for a device that is offline. This
module knows the store, the registry of tunnels and `services`; neither users nor our HTTP API.
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

from apps.common.db.connections import release_database
from apps.common.errors import DomainError
from apps.common.limits.places import Places
from apps.deployments import selectors, services
from apps.deployments.models import Deployment, DeploymentStatus
from apps.model_registry.models import ModelStatus
from apps.storage.services import open_range
from apps.tunnels import registry
from apps.tunnels.box_call import Call, CallFailed, Reply, call_box
from apps.tunnels.client_request import Limits
from apps.tunnels.route import Route

logger = structlog.get_logger(__name__)

AT_ONCE: Final = 4
"""Deployments in one worker process at once, of one owner three: its other threads are for other jobs."""
PART: Final = 8 << 20
"""Bytes in one `PUT`: what is on its way beyond the box's last word, however much the sockets between would hold."""
PLACE_SECONDS: Final = 2
PLACE_SECONDS_MAX: Final = 30
RETRIES_PER_SECOND: Final = 4
"""How many waiting jobs of one owner look for a place in a second: the more wait, the more seldom each looks."""
BEAT_SECONDS: Final = 1.0
PATIENCE: Final = dt.timedelta(hours=1)
"""How long a deployment waits for a device that is offline, since bytes moved last."""
ATTEMPTS: Final = 10
"""Failures in a row with the device online and not one byte more at it; then the deployment has failed."""
BACKOFF_MAX: Final = 15
OFFLINE_MIN: Final = 2
OFFLINE_MAX: Final = 30
"""Seconds between looks for a device that is offline: a quarter of how long it has been so, within these."""
LOST: Final = "LOST"
"""Another worker has the deployment, it was cancelled, or its model, device or account is gone."""
STOPPING: Final = "STOPPING"
"""This worker ends."""
OFFLINE: Final = frozenset({"TUNNEL_DISCONNECTED", "TUNNEL_UNAVAILABLE"})
_COUNT: Final = re.compile(r"[0-9]{1,18}\Z")
_places: Final = Places("deployments", lambda: AT_ONCE)


class Refused(Exception):
    """The box does not accept the model; trying again does not help."""


class RetryLater(Exception):
    """Trying again may help; `code` is the error code of what failed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def continue_deployment(*, deployment_id: uuid.UUID, run: int, stopping: Callable[[], bool]) -> None:
    """Send what the box lacks, if `run` is still the deployment's and there is a place. `stopping`: the worker ends."""
    owner_id = selectors.owner_of_active(deployment_id)
    if owner_id is None:
        return
    try:
        with _places.place(str(owner_id)) as free:
            if free:
                deployment = services.claim_deployment(deployment_id=deployment_id, run=run, now=timezone.now())
                if deployment is not None:
                    _send_and_record(Transfer(deployment, stopping))
            else:
                waiting = selectors.count_queued(owner_id)
                seconds = min(PLACE_SECONDS_MAX, max(PLACE_SECONDS, waiting // RETRIES_PER_SECOND))
                services.retry_later(deployment_id=deployment_id, run=run, seconds=seconds)
    finally:
        release_database()


def _send_and_record(transfer: Transfer) -> None:
    """Send the bytes, and write what became of the deployment."""
    deployment = transfer.deployment
    try:
        transfer.send()
        services.finish_deployment(**transfer.claim, status=DeploymentStatus.DONE, now=timezone.now())
        outcome = "done"
    except Refused as error:
        _fail(transfer, "AGENT_BAD_RESPONSE", str(error))
        outcome = "refused"
    except (RetryLater, CallFailed, DomainError) as error:
        outcome = _requeue(transfer, error.code, str(error))
    logger.info(
        "deployment",
        deployment=str(deployment.pk),
        model=str(deployment.model_id),
        device=str(deployment.device_id),
        outcome=outcome,
        bytes_done=transfer.bytes_done,
        request_id=deployment.request_id,
    )


def _requeue(transfer: Transfer, code: str, problem: str) -> str:
    """After an error: stop, hand over, retry later, or give up. Returns the outcome for the log."""
    now, deployment = timezone.now(), transfer.deployment
    if code == LOST:
        missing = selectors.missing_part(deployment.pk)
        if missing:
            _fail(transfer, "NOT_FOUND", missing)
        return "stopped"
    if code == STOPPING:
        services.hand_over_deployment(**transfer.claim, confirmed=transfer.confirmed, now=now)
        return "handed on"
    attempts = 0 if transfer.gained else deployment.attempts
    since = now if transfer.moved else deployment.moved_at
    offline = code in OFFLINE
    if now - since > PATIENCE if offline else attempts + 1 >= ATTEMPTS:
        _fail(transfer, code, _message_of(code))
        return f"given up: {problem}"
    waited = int((now - since).total_seconds()) // 4
    seconds = min(OFFLINE_MAX, max(OFFLINE_MIN, waited)) if offline else min(BACKOFF_MAX, 1 << attempts)
    services.requeue_deployment(
        **transfer.claim,
        confirmed=transfer.confirmed,
        code=code,
        message=_message_of(code),
        attempts=attempts + (not offline),
        seconds=seconds,
        now=now,
    )
    return f"put off: {problem}"


def _fail(transfer: Transfer, code: str, message: str) -> None:
    services.finish_deployment(
        **transfer.claim, status=DeploymentStatus.FAILED, code=code, message=message, now=timezone.now()
    )


def _message_of(code: str) -> str:
    return str(DomainError(code).message)


class Transfer:
    """What one job sends of a deployment.

    It is the `Control` of its calls to the box, which read `ended` four times a second; once a second that is a
    heartbeat to the database.
    """

    def __init__(self, deployment: Deployment, stopping: Callable[[], bool]) -> None:
        self.deployment = deployment
        self.claim: dict[str, Any] = {"deployment_id": deployment.pk, "run": deployment.run}
        self.bytes_done = deployment.bytes_done
        self.moved = False
        """Whether bytes left for the box in this job."""
        self.gained = False
        """Whether the box has said that it has more than ever before."""
        self.confirmed = deployment.confirmed
        self._stopping = stopping
        self._stopped = ""
        self._beat_at = time.monotonic()
        self._offset = 0
        self._recorded = deployment.bytes_done
        values = settings.VISIONA
        self._secret = str(values["INTERNAL_SECRET"][0])
        self._limits = Limits(
            request_body=deployment.bytes_total,
            open_seconds=values["PROXY_OPEN_SECONDS"],
            head_seconds=values["PROXY_HEAD_SECONDS"],
            idle_seconds=values["PROXY_IDLE_SECONDS"],
        )

    # --- the worker's side --------------------------------------------------------------------------------------------
    @property
    def ended(self) -> str:
        """Why the call that is under way must end now, LOST or STOPPING; empty: go on."""
        if not self._stopped and time.monotonic() - self._beat_at >= BEAT_SECONDS:
            self._beat()
        if not self._stopped and self._stopping():
            self._stopped = STOPPING
        return self._stopped

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        moved, self._recorded = self.bytes_done != self._recorded, self.bytes_done
        try:
            claimed = services.record_progress(
                **self.claim, bytes_done=self.bytes_done, confirmed=self.confirmed, moved=moved, now=timezone.now()
            )
        except Error as error:  # sending goes on; if this lasts, another worker claims the deployment
            logger.warning("deployment_not_told", deployment=str(self.deployment.pk), error=type(error).__name__)
            return
        finally:
            release_database()
        if not claimed:
            self._stopped = LOST

    def _count_sent(self, count: int) -> None:
        self.bytes_done = self._offset + count
        self.moved = self.moved or count > 0

    # --- the box's side -----------------------------------------------------------------------------------------------
    def send(self) -> None:
        """Send the box what it lacks. Raises Refused, RetryLater, CallFailed, and DomainError of the store."""
        model = self.deployment.model
        self._beat()
        if self._stopped:
            raise RetryLater(self._stopped, "lost or stopping")
        if model.status != ModelStatus.READY:
            raise Refused("The model is not ready.")
        total, offset = self.deployment.bytes_total, self._offset_at_box()
        self._confirm(offset)
        self._beat()
        facts = _object(self._call("GET")) if offset == total else {}
        if offset == total and facts.get("status", "ready") != "ready":
            offset = 0
        while offset < total:
            offset, facts = self._put(offset, min(total, offset + PART))
            self._confirm(offset)
        sha256 = str(facts.get("sha256") or "").lower()
        if sha256 and sha256 != model.sha256:
            self._call("DELETE")
            raise Refused("What arrived at the box has another SHA-256 than the model.")

    def _offset_at_box(self) -> int:
        """How many bytes the box has; 0 if it names none, or another size. Raises as `send`."""
        reply = self._call("HEAD")
        total = self.deployment.bytes_total
        offset, length = reply.value("upload-offset"), reply.value("upload-length")
        if not 200 <= reply.status < 300 or not _COUNT.match(offset) or length not in ("", str(total)):
            return 0
        return min(int(offset), total)

    def _confirm(self, offset: int) -> None:
        """The box has said that it has the bytes before `offset`."""
        self.bytes_done = self._offset = offset
        self.gained = self.gained or offset > self.confirmed
        self.confirmed = max(offset, self.confirmed)

    def _put(self, offset: int, end: int) -> tuple[int, dict[str, Any]]:
        """Send the bytes from `offset` to before `end`. Returns how many the box has now, and its answer's JSON."""
        model, total = self.deployment.model, self.deployment.bytes_total
        fields = (
            ("Content-Type", "application/octet-stream"),
            ("Content-Range", f"bytes {offset}-{end - 1}/{total}"),
        )
        with open_range(key=model.object_key, start=offset, length=end - offset) as pieces:
            reply = self._call("PUT", fields=fields, body=pieces, length=end - offset, sent=self._count_sent)
        if reply.status in (408, 409, 425, 429) or reply.status >= 500:
            # 409: the end of an earlier upload is still under way there, or it has another offset than it said.
            raise RetryLater("AGENT_BAD_RESPONSE", f"the box answered {reply.status}")
        if not 200 <= reply.status < 300:
            raise Refused(f"The box refused the model with status {reply.status}.")
        has = reply.value("upload-offset")
        if has not in ("", str(end)):
            raise RetryLater("AGENT_BAD_RESPONSE", f"the box has {has[:20]} bytes after it was sent up to {end}")
        return end, _object(reply)

    def _call(self, method: str, **more: Any) -> Reply:
        deployment = self.deployment
        request_id = deployment.request_id or f"deployment-{deployment.pk}"
        call = Call(method, f"/api/models/{deployment.model_id}", request_id, **more)
        device_id = str(deployment.device_id)
        try:
            entry = registry.lookup([device_id]).get(device_id)
        except redis.exceptions.RedisError as error:
            raise RetryLater("CACHE_UNAVAILABLE", "the registry does not answer") from error
        if entry is None:
            raise RetryLater("TUNNEL_DISCONNECTED", "the device is offline")
        route = Route(entry.device_id, entry.node_url, entry.session, entry.epoch)
        return call_box(route, call, control=self, limits=self._limits, secret=self._secret)


def _object(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer; empty if it is none."""
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
