"""What changes a deployment: asking for one, cancelling it, and what its worker writes.

The bytes are sent by `transfer`. `run` is a fencing token: each write of a worker names the one that it claimed, and
changes nothing if another worker has claimed the deployment since, or if it is over.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.utils.translation import gettext as _
from procrastinate.contrib.django import app as jobs

from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found
from apps.deployments.models import ACTIVE, Deployment, DeploymentStatus
from apps.devices.models import Device
from apps.model_registry.models import AIModel, ModelStatus
from apps.model_registry.selectors import readable_by
from apps.webhooks.models import Event
from apps.webhooks.services import emit

TASK: Final = "model_registry.deploy"
"""The job's name in the queue. The release before had it from the app that deployments were in, and its workers run
beside ours. Ours know `NEXT_TASK` too, so that the next release may queue that."""
NEXT_TASK: Final = "deployments.deploy"
ONE_ACTIVE: Final = "deployments_one_active"
STALE: Final = dt.timedelta(seconds=10)
"""How long after its last heartbeat (one a second) a worker loses its deployment. Both times are by PostgreSQL's clock:
those of the hosts may be further apart."""
RESCUED_AT_ONCE: Final = 100


def begin_deployment(
    *,
    actor: Actor,
    owner_id: uuid.UUID,
    model_id: uuid.UUID,
    device_id: uuid.UUID,
    now: dt.datetime,
    force: bool = False,
) -> Deployment:
    """Queue a model for a device of the owner; a worker begins at once, or once the device is online.

    Raises DomainError NOT_FOUND for what is not the owner's (built-in models are everybody's), INVALID_STATE for a
    model that is not ready or, without `force`, is for other chips than the device has, CONFLICT (`details.deployment`)
    while one of the same model and device is under way.
    """
    try:
        with transaction.atomic():
            # Shared with deleting and unpairing, which lock them too: what is gone is not deployed.
            model = readable_by(owner_id).select_for_update(no_key=True, of=("self",)).filter(id=model_id).first()
            device = (
                Device.objects.select_for_update(no_key=True)
                .filter(id=device_id, owner_id=owner_id, deleted_at=None)
                .first()
            )
            if model is None or device is None:
                raise not_found()
            if model.status != ModelStatus.READY:
                raise DomainError("INVALID_STATE", _("The model is not ready: upload and finalize it first."))
            if not force:
                _check_chips(model, device)
            return _queue(actor, owner_id, model, device, now)
    except IntegrityError as error:
        if ONE_ACTIVE not in str(error):
            raise
        there = Deployment.objects.filter(model_id=model_id, device_id=device_id, status__in=ACTIVE).first()
        raise DomainError(
            "CONFLICT",
            _("This model is being deployed to this device already."),
            details={"deployment": [str(there.id)]} if there is not None else None,
        ) from error


def _check_chips(model: AIModel, device: Device) -> None:
    """Raises DomainError INVALID_STATE for a model that is for other chips than those that are known of the device.

    Its own, and what scans found on it; of a device of which none is known nobody can say.
    """
    found = {device.chip, *device.accelerators.values_list("chip", flat=True)} - {""}
    wanted = {chip.casefold() for chip in model.chips}
    if wanted and found and not wanted & {chip.casefold() for chip in found}:
        raise DomainError(
            "INVALID_STATE",
            _("The model is for other chips than this device has; send force to deploy it all the same."),
            details={"chips": sorted(model.chips), "device_chips": sorted(found)},
        )


def _queue(actor: Actor, owner_id: uuid.UUID, model: AIModel, device: Device, now: dt.datetime) -> Deployment:
    deployment = Deployment.objects.create(
        owner_id=owner_id,
        model=model,
        device=device,
        bytes_total=model.size,
        moved_at=now,
        request_id=actor.request_id[:64],
    )
    _defer(deployment.id, run=deployment.run, seconds=0)
    detail = {"model": str(model.id), "device": str(device.id)}
    _audit(actor, "deployment.start", deployment.id, detail, now)
    return deployment


@transaction.atomic
def cancel_deployment(*, actor: Actor, owner_id: uuid.UUID, deployment_id: uuid.UUID, now: dt.datetime) -> Deployment:
    """Cancel a deployment; its worker stops within two seconds. One that is cancelled already stays so.

    Raises DomainError NOT_FOUND, INVALID_STATE for one that is done or failed.
    """
    deployment = Deployment.objects.select_for_update(no_key=True).filter(id=deployment_id, owner_id=owner_id).first()
    if deployment is None:
        raise not_found()
    if deployment.status == DeploymentStatus.CANCELLED:
        return deployment
    if deployment.status not in ACTIVE:
        raise DomainError("INVALID_STATE", _("The deployment is over."))
    _end(deployment, DeploymentStatus.CANCELLED, "", "", now)
    _audit(actor, "deployment.cancel", deployment.id, {}, now)
    return deployment


# --- what a worker writes ---------------------------------------------------------------------------------------------
def claim_deployment(*, deployment_id: uuid.UUID, run: int, now: dt.datetime) -> Deployment | None:
    """Claim the deployment for this worker: its row with a new `run`, and with its model, device and owner.

    None if `run` is no longer the deployment's, or if it is over.
    """
    mine = Deployment.objects.filter(id=deployment_id, run=run, status__in=ACTIVE)
    if not mine.update(run=F("run") + 1, status=DeploymentStatus.SENDING, beat_at=Now(), updated_at=now):
        return None
    Deployment.objects.filter(id=deployment_id, started_at=None).update(started_at=now)
    return Deployment.objects.select_related("model", "device", "owner").filter(id=deployment_id, run=run + 1).first()


def record_progress(
    *, deployment_id: uuid.UUID, run: int, bytes_done: int, confirmed: int, moved: bool, now: dt.datetime
) -> bool:
    """The worker's heartbeat, and how far it is, in one statement. `moved`: bytes left since the last one.

    False: the worker must stop. Another has the deployment, it is over, or its model, device or account is gone.
    """
    facts: dict[str, Any] = {"beat_at": Now(), "bytes_done": bytes_done, "confirmed": confirmed, "updated_at": now}
    if moved:
        facts |= {"moved_at": now, "error_code": "", "error_message": ""}
    still = _claimed(deployment_id, run).filter(model__deleted_at=None, device__deleted_at=None, owner__is_active=True)
    return bool(still.update(**facts))


def requeue_deployment(
    *,
    deployment_id: uuid.UUID,
    run: int,
    confirmed: int,
    code: str,
    message: str,
    attempts: int,
    seconds: int,
    now: dt.datetime,
) -> bool:
    """Put the deployment back into the queue for `seconds`, with the error that it waits for to pass.

    False: another worker has it, or it is over.
    """
    with transaction.atomic():
        released = _claimed(deployment_id, run).update(
            status=DeploymentStatus.QUEUED,
            beat_at=None,
            bytes_done=confirmed,
            confirmed=confirmed,
            attempts=attempts,
            error_code=code,
            error_message=message[:500],
            updated_at=now,
        )
        if released:
            _defer(deployment_id, run=run, seconds=seconds)
    return bool(released)


def hand_over_deployment(*, deployment_id: uuid.UUID, run: int, confirmed: int, now: dt.datetime) -> bool:
    """Put the deployment back into the queue for any other worker, since this one ends.

    False: another worker has it, or it is over.
    """
    with transaction.atomic():
        released = _claimed(deployment_id, run).update(
            status=DeploymentStatus.QUEUED, beat_at=None, bytes_done=confirmed, confirmed=confirmed, updated_at=now
        )
        if released:
            _defer(deployment_id, run=run, seconds=0)
    return bool(released)


def finish_deployment(
    *,
    deployment_id: uuid.UUID,
    run: int,
    status: DeploymentStatus,
    now: dt.datetime,
    code: str = "",
    message: str = "",
) -> bool:
    """Write that the deployment is done or has failed. False: another worker has it, or it was over."""
    with transaction.atomic():
        deployment = _claimed(deployment_id, run).select_for_update(no_key=True).first()
        if deployment is None:
            return False
        if status == DeploymentStatus.DONE:
            deployment.bytes_done = deployment.bytes_total
        _end(deployment, status, code, message, now)
    return True


def retry_later(*, deployment_id: uuid.UUID, run: int, seconds: int) -> None:
    """Queue the job anew for in `seconds`: this process has as many deployments under way as it may."""
    _defer(deployment_id, run=run, seconds=seconds)


def rescue_deployments(*, now: dt.datetime) -> int:
    """Queue again the deployments whose worker was killed; returns how many. Safe on several hosts at once."""
    rescued = 0
    stale = Deployment.objects.filter(status=DeploymentStatus.SENDING, beat_at__lt=Now() - STALE).order_by("beat_at")
    for deployment_id, run in list(stale.values_list("id", "run")[:RESCUED_AT_ONCE]):
        with transaction.atomic():
            left = _claimed(deployment_id, run).filter(beat_at__lt=Now() - STALE)
            if left.update(status=DeploymentStatus.QUEUED, run=F("run") + 1, beat_at=None, updated_at=now):
                _defer(deployment_id, run=run + 1, seconds=0)
                rescued += 1
    return rescued


# --- shared -----------------------------------------------------------------------------------------------------------
def _claimed(deployment_id: uuid.UUID, run: int) -> QuerySet[Deployment]:
    return Deployment.objects.filter(id=deployment_id, run=run, status=DeploymentStatus.SENDING)


def _end(deployment: Deployment, status: DeploymentStatus, code: str, message: str, now: dt.datetime) -> None:
    """Write the end of a locked deployment, and queue it for the owner's webhooks, in the caller's transaction."""
    deployment.status, deployment.finished_at, deployment.beat_at = status, now, None
    deployment.error_code, deployment.error_message = code, message[:500]
    deployment.save(
        update_fields=[
            "status", "finished_at", "beat_at", "error_code", "error_message", "bytes_done", "updated_at",
        ]
    )  # fmt: skip
    data = {
        "id": str(deployment.id),
        "model_id": str(deployment.model_id),
        "device_id": str(deployment.device_id),
        "status": status.value,
        "bytes_done": deployment.bytes_done,
        "bytes_total": deployment.bytes_total,
        "error": {"code": code, "message": message} if code else None,
    }
    emit(owner_id=deployment.owner_id, event=Event.DEPLOYMENT_FINISHED, data=data, now=now)


def _defer(deployment_id: uuid.UUID, *, run: int, seconds: int) -> None:
    task = jobs.configure_task(TASK, schedule_in={"seconds": seconds}) if seconds else jobs.configure_task(TASK)
    task.defer(deployment_id=str(deployment_id), run=run)


def _audit(actor: Actor, action: str, deployment_id: uuid.UUID, detail: dict[str, Any], now: dt.datetime) -> None:
    record(actor=actor, action=action, object_type="deployment", object_id=str(deployment_id), detail=detail, now=now)
