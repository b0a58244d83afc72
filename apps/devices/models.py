"""Devices, what scans found on them, and what happened to them (data.md)."""

from django.conf import settings
from django.db import models

from apps.common.db.append_only import TRIGGERS
from apps.common.ids import uuid7
from apps.common.models import BaseModel


class LinkStatus(models.TextChoices):
    """Whether the device has a tunnel."""

    ONLINE = "online"
    OFFLINE = "offline"


class DeviceStatus(models.TextChoices):
    """The state of its accelerators, as the last scan told; `unknown` where it told of none."""

    UNKNOWN = "unknown"
    READY = "ready"
    BUSY = "busy"
    ERROR = "error"


class Device(BaseModel):
    """A box. `link_status` follows the registry by a job; the registry's word is what counts at once.

    `twin_at`: when another live device of the owner was seen with its serial. `cloned_at`: when two agents were last
    seen with its credential, in turn.
    """

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="devices")
    name = models.CharField(max_length=200)
    serial = models.CharField(max_length=128, null=True, blank=True)  # noqa: DJ001 - null: an agent that names none
    chip = models.CharField(max_length=64, blank=True, default="")
    firmware = models.CharField(max_length=64, blank=True, default="")
    agent_version = models.CharField(max_length=128, blank=True, default="")
    address = models.CharField(max_length=64, blank=True, default="")
    # of the agent that came last
    instance = models.CharField(max_length=128, blank=True, default="", db_default="", editable=False)
    # what its agent says, where it is not known by that
    claimed_serial = models.CharField(max_length=128, blank=True, default="", db_default="")
    # what its agent makes reachable, and whether anything listened there when it connected; None: it did not look
    local_address = models.CharField(max_length=261, blank=True, default="", db_default="")
    local_listening = models.BooleanField(null=True, blank=True)
    twin_at = models.DateTimeField(null=True, blank=True)
    cloned_at = models.DateTimeField(null=True, blank=True)
    epoch = models.BigIntegerField(default=0)
    link_status = models.CharField(max_length=16, choices=LinkStatus.choices, default=LinkStatus.OFFLINE)
    device_status = models.CharField(max_length=16, choices=DeviceStatus.choices, default=DeviceStatus.UNKNOWN)
    metadata = models.JSONField(default=dict, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "devices"
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("owner", "serial"), condition=models.Q(deleted_at=None), name="devices_owner_serial_unique"
            ),
            models.CheckConstraint(
                condition=models.Q(link_status__in=LinkStatus.values), name="devices_link_status_known"
            ),
            models.CheckConstraint(
                condition=models.Q(device_status__in=DeviceStatus.values), name="devices_device_status_known"
            ),
        )
        indexes = (
            models.Index(
                fields=("owner", "created_at"), condition=models.Q(deleted_at=None), name="devices_owner_created_live"
            ),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def possible_twin(self) -> bool:
        """Whether another box says that it has this one's serial, or this one says another's."""
        return self.twin_at is not None


class Installation(models.Model):
    """Which database this is: one row, made once, that goes with a dump and with a replica."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    singleton = models.BooleanField(default=True, unique=True, editable=False)

    class Meta:
        db_table = "installation"
        constraints = (models.CheckConstraint(condition=models.Q(singleton=True), name="installation_one_row"),)

    def __str__(self) -> str:
        return str(self.id)


class Accelerator(BaseModel):
    """An accelerator that a scan of the device found."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="accelerators")
    serial = models.CharField(max_length=128)
    chip = models.CharField(max_length=64, blank=True, default="")
    usb_id = models.CharField(max_length=32, blank=True, default="")
    firmware = models.CharField(max_length=64, blank=True, default="")
    status = models.CharField(max_length=32, blank=True, default="")
    seen_at = models.DateTimeField()

    class Meta:
        db_table = "accelerators"
        ordering = ("serial",)
        constraints = (models.UniqueConstraint(fields=("device", "serial"), name="accelerators_device_serial_unique"),)

    def __str__(self) -> str:
        return self.serial


class DeviceEvent(models.Model):
    """Connects, disconnects with reason, revocations. Append-only, no foreign keys."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(db_index=True)
    device_id = models.UUIDField()
    action = models.CharField(max_length=64)
    actor = models.CharField(max_length=64, blank=True, default="")
    address = models.CharField(max_length=64, blank=True, default="")
    request_id = models.CharField(max_length=64, blank=True, default="")
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        db_table = "device_events"
        ordering = ("-at", "-id")
        indexes = (models.Index(fields=("device_id", "-at"), name="device_events_device_at"),)
        triggers = TRIGGERS

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.action}"
