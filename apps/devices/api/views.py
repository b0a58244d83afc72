"""The device routes, and `/api/pairing/status`, which tells of devices."""

import datetime as dt
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.fields import UuidField
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, id_or_404, ordering_field
from apps.common.http.responses import ok
from apps.devices import selectors, services
from apps.devices.api.serializers import (
    AcceleratorSerializer,
    ChangeBody,
    DeviceEventSerializer,
    DeviceSerializer,
    PairingStatusAnswer,
    RegisterBody,
    shown,
)
from apps.devices.models import Device, LinkStatus


def render(devices: Sequence[Device | selectors.DeviceRow]) -> list[Any]:
    """Devices as JSON, with the registry's word on each: one call to Redis for all."""
    entries = selectors.entries_of(devices)
    return [shown(device, entries.get(str(device.id))) for device in devices]


class DeviceQuery(PageQuery):
    link_status = serializers.ChoiceField(choices=LinkStatus.choices, required=False)
    status = serializers.ChoiceField(
        choices=LinkStatus.choices, required=False, help_text="The same as `link_status`, by the prototype's name."
    )
    chip = serializers.CharField(max_length=64, required=False, help_text="Its own or an accelerator's, exactly.")
    cluster = UuidField(required=False, help_text="A cluster that they serve.")
    search = serializers.CharField(
        max_length=200, required=False, allow_blank=True, help_text="Part of the name or the serial; empty: all."
    )
    ordering = ordering_field("created_at", "updated_at", "name", default="-created_at")


class DevicesView(ApiView):
    query_classes: ClassVar = {"GET": DeviceQuery}

    @describe("Devices", answer=DeviceSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own devices."""
        owner_id = self.user.pk
        asked = {**self.query, "link_status": self.query.get("link_status") or self.query.get("status")}
        filters = {name: asked[name] for name in ("link_status", "chip", "search", "cluster") if asked.get(name)}
        if not filters:  # what front ends ask for again and again
            return self.page(
                partial(selectors.devices_of, owner_id), render, partial(selectors.first_devices, owner_id)
            )
        rows = selectors.filter_devices(owner_id, **filters)
        return self.page(rows.values_list(*selectors.DEVICE_COLUMNS, named=True), render)

    @describe(
        "Devices", body=RegisterBody, answer=DeviceSerializer, status=201, errors=("SERIAL_TAKEN", "QUOTA_EXCEEDED")
    )
    def post(self, request: Request) -> Response:
        """Register a device by its serial before it is paired. A serial that was unpaired may be registered again."""
        device = services.register_device(
            actor=self.actor, owner_id=self.user.pk, now=timezone.now(), **self.body(RegisterBody)
        )
        return ok(render([device])[0], status=201)


class OneDeviceView(ApiView):
    """Whose path names a device of the user."""

    target: Device

    def load(self, request: Request, **kwargs: str) -> Device:
        return selectors.device_of(self.user.pk, id_or_404(kwargs["id"]))


class DeviceView(OneDeviceView):
    @describe("Devices", answer=DeviceSerializer)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """One device."""
        return ok(render([self.target])[0])

    @describe("Devices", body=ChangeBody, answer=DeviceSerializer)
    def patch(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Rename a device, or change what is kept with it."""
        device = services.change_device(
            actor=self.actor,
            owner_id=self.user.pk,
            device_id=self.target.id,
            changes=self.body(ChangeBody),
            now=timezone.now(),
        )
        return ok(render([device])[0])

    @describe("Devices")
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """Unpair: its tokens are dead at once, and its tunnel closes."""
        services.unpair_device(actor=self.actor, owner_id=self.user.pk, device_id=self.target.id, now=timezone.now())
        return ok(None)


class AcceleratorQuery(PageQuery):
    ordering = ordering_field("serial", "seen_at", "created_at", default="serial")


class AcceleratorsView(OneDeviceView):
    query_classes: ClassVar = {"GET": AcceleratorQuery}

    @describe("Devices", answer=AcceleratorSerializer, many=True)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """The accelerators that scans found on the device."""
        rows = selectors.accelerators_of(self.target)
        return self.page(rows, lambda found: list(AcceleratorSerializer(found, many=True).data))


class EventQuery(PageQuery):
    ordering = ordering_field("at", default="-at")


class EventsView(OneDeviceView):
    query_classes: ClassVar = {"GET": EventQuery}

    @describe("Devices", answer=DeviceEventSerializer, many=True)
    def get(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's name (api.md)
        """What happened to the device: paired, connected, disconnected and why, tokens revoked."""
        rows = selectors.events_of(self.target)
        return self.page(rows, lambda found: list(DeviceEventSerializer(found, many=True).data))


class PairingStatusView(ApiView):
    @describe("Pairing", answer=PairingStatusAnswer)
    def get(self, request: Request) -> Response:
        """Which own devices are connected right now."""
        devices = list(selectors.devices_of(self.user.pk).order_by("-created_at", "-id"))
        entries = selectors.entries_of(devices)
        listed = []
        for device in devices:
            entry = entries.get(str(device.id))
            listed.append(
                {
                    "device_id": device.id,
                    "name": device.name,
                    "serial": device.serial,
                    "connected": entry is not None,
                    "connected_at": dt.datetime.fromisoformat(entry.connected_at) if entry else None,
                    "agent_version": device.agent_version,
                    "address": device.address,
                    "last_seen_at": device.last_seen_at,
                }
            )
        return ok(PairingStatusAnswer({"connected": bool(entries), "devices": listed}).data)
