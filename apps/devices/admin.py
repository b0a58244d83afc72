"""Devices for operators: who is connected since when and with how much traffic; kick a tunnel, unpair a device."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

import redis.exceptions
from django.contrib import admin, messages
from django.contrib.admin.utils import display_for_value
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display

from apps.common.actor import Actor
from apps.common.admin import ReadOnlyAdmin, are_you_sure, asks_first
from apps.common.errors import DomainError
from apps.devices import services
from apps.devices.models import Accelerator, Device, DeviceEvent
from apps.devices.twins import CLONED_SHOWN, is_cloned
from apps.tunnels import daemon, registry
from apps.tunnels.registry import Entry
from tunnel.contract import SessionFact

UNPAIR: Final = "Unpair? The tunnel closes, all tokens end, and the box has to be paired again by hand."
_LINK_LABELS = {"online": "success", "offline": "warning", "unpaired": "danger", "unknown": "info"}


class LinkFilter(admin.SimpleListFilter):
    """By the registry's word; what is unpaired is hidden unless it is asked for."""

    title = "link status"
    parameter_name = "link_status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("online", "Online"), ("offline", "Offline"), ("unpaired", "Unpaired"), ("all", "All")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        if self.value() == "all":
            return queryset
        if self.value() == "unpaired":
            return queryset.filter(deleted_at__isnull=False)
        live = queryset.filter(deleted_at=None)
        if self.value() in ("online", "offline"):
            online = registry.online_devices()
            return live.filter(id__in=online) if self.value() == "online" else live.exclude(id__in=online)
        return live


class TwinFilter(admin.SimpleListFilter):
    """Devices that look like another one."""

    title = "looks like another"
    parameter_name = "twins"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("twin", "Possible twins"), ("cloned", "Cloned")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Device]) -> QuerySet[Device]:
        if self.value() == "twin":
            return queryset.filter(twin_at__isnull=False)
        if self.value() == "cloned":
            return queryset.filter(cloned_at__gt=timezone.now() - CLONED_SHOWN)
        return queryset


def _entries(devices: Iterable[Device]) -> Mapping[str, Entry] | None:
    """The registry's entries of the devices; None while Redis is down: the admin is of use then, too."""
    try:
        return registry.lookup(str(device.id) for device in devices)
    except redis.exceptions.RedisError:
        return None


@admin.register(Device)
class DeviceAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = (
        "box", "link", "connected_since", "last_seen_at", "chip", "owner", "agent",
    )  # fmt: skip
    list_filter: ClassVar[Any] = (
        LinkFilter,
        TwinFilter,
        "device_status",
        "chip",
        ("last_seen_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_select_related: ClassVar[Any] = ("owner",)
    search_fields: ClassVar[Any] = ("name", "serial", "claimed_serial", "owner__email", "id", "address")
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("kick_selected", "dismiss_selected", "unpair_selected")
    actions_submit_line: ClassVar[Any] = ("kick_this", "unpair_this")
    fieldsets: ClassVar[Any] = (
        ("Device", {"fields": (
            "id", "name", "serial", "claimed_serial", "owner", "chip", "firmware", "device_status", "metadata",
        )}),
        ("Tunnel", {"fields": (
            "link", "connected_since", "node", "tunnel_session", "agent_version", "address", "local", "round_trip",
            "traffic", "streams", "epoch", "last_seen_at", "looks_like", "twin_at", "cloned_at",
        )}),
        ("History", {"fields": ("history", "created_at", "updated_at", "deleted_at")}),
    )  # fmt: skip

    def has_change_permission(self, request: HttpRequest, obj: Device | None = None) -> bool:
        """Who may change devices may kick and unpair; the form itself has no field to change."""
        return bool(request.user.has_perm("devices.change_device"))

    def get_readonly_fields(self, request: HttpRequest, obj: Device | None = None) -> list[str]:
        return [name for _title, group in self.fieldsets for name in group["fields"]]

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        changelist.result_list = rows = list(changelist.result_list)
        entries = _entries(rows)
        for device in rows:
            device.tunnel_entries = entries
        return changelist

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Device | None:
        device: Device | None = super().get_object(request, object_id, from_field)
        if device is not None:
            entries = _entries([device])
            device.tunnel_entries = entries  # type: ignore[attr-defined]  # for the columns below
            device.tunnel_fact = _fact(entries, device)  # type: ignore[attr-defined]  # for the columns below
        return device

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        context |= {"show_save": False, "show_save_and_continue": False, "show_close": True}
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Device, form: ModelForm[Device], change: bool) -> None:
        """Runs the pressed button alone: a row that is saved from a form would turn back its epoch."""
        for each in self.get_actions_submit_line(request, obj.pk):
            if each.action_name in request.POST:
                each.method(request, obj)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """The page, or the question that its button for unpairing leads to."""
        if request.method == "POST" and "devices_device_unpair_this" in request.POST:
            device = self.get_object(request, object_id)
            if device is not None and device.deleted_at is None and self.has_change_permission(request, device):
                return are_you_sure(self, request, UNPAIR, "unpair_selected", [device])
        answer: HttpResponseBase = super().change_view(request, object_id, *args, **kwargs)
        return answer

    def response_change(self, request: HttpRequest, obj: Device) -> HttpResponseBase:
        """Back to the page. What was done has been said; Django would add that the device "was changed"."""
        return HttpResponseRedirect(request.path)

    def log_change(self, request: HttpRequest, obj: Device, message: Any) -> None:
        """The audit trail tells what was done; Django's own log would tell that nothing was changed."""

    # --- columns ------------------------------------------------------------------------------------------------------
    @display(description="Link status", label=_LINK_LABELS)  # type: ignore[untyped-decorator]  # unfold is untyped
    def link(self, device: Device) -> str:
        if device.deleted_at is not None:
            return "unpaired"
        if getattr(device, "tunnel_entries", None) is None:
            return "unknown"
        return "online" if _entry(device) else "offline"

    @display(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Looks like another",
        label={"cloned": "danger", "possible twin": "warning"},
    )
    def looks_like(self, device: Device) -> str:
        if is_cloned(device.cloned_at, timezone.now()):
            return "cloned"
        return "possible twin" if device.possible_twin else "-"

    @display(description="Device", ordering="name", header=True)  # type: ignore[untyped-decorator]  # unfold is untyped
    def box(self, device: Device) -> list[str]:
        marks = [mark for mark in (self.looks_like(device),) if mark != "-"]
        return [device.name, " · ".join([device.serial or device.claimed_serial or "no serial", *marks])]

    @display(description="Agent", ordering="agent_version", header=True)  # type: ignore[untyped-decorator]  # unfold is untyped
    def agent(self, device: Device) -> list[str]:
        return [device.agent_version or "-", device.address]

    @display(description="Connected since")  # type: ignore[untyped-decorator]  # unfold is untyped
    def connected_since(self, device: Device) -> Any:
        entry = _entry(device)
        # As a column is shown: a page would print the seconds' fractions and the offset.
        return display_for_value(parse_datetime(entry.connected_at), "-") if entry else None

    @display(description="Node")  # type: ignore[untyped-decorator]  # unfold is untyped
    def node(self, device: Device) -> str:
        entry = _entry(device)
        return f"{entry.node_url} ({entry.node})" if entry else "-"

    @display(description="Session")  # type: ignore[untyped-decorator]  # unfold is untyped
    def tunnel_session(self, device: Device) -> str:
        entry = _entry(device)
        return entry.session if entry else "-"

    @display(description="Round trip")  # type: ignore[untyped-decorator]  # unfold is untyped
    def round_trip(self, device: Device) -> str:
        fact = getattr(device, "tunnel_fact", None)
        return f"{fact['rtt_ms']:.1f} ms" if fact and fact.get("rtt_ms") is not None else "-"

    @display(description="Traffic")  # type: ignore[untyped-decorator]  # unfold is untyped
    def traffic(self, device: Device) -> str:
        fact = getattr(device, "tunnel_fact", None)
        if not fact:
            return "-"
        return f"{filesizeformat(fact['bytes_in'])} from the box, {filesizeformat(fact['bytes_out'])} to it"

    @display(description="Streams open")  # type: ignore[untyped-decorator]  # unfold is untyped
    def streams(self, device: Device) -> str:
        fact = getattr(device, "tunnel_fact", None)
        return str(fact["streams"]) if fact else "-"

    @display(description="Local address")  # type: ignore[untyped-decorator]  # unfold is untyped
    def local(self, device: Device) -> str:
        words = {True: "", False: " (nothing listened there when the agent connected)", None: ""}
        return f"{device.local_address or '-'}{words[device.local_listening]}"

    @display(description="Events")  # type: ignore[untyped-decorator]  # unfold is untyped
    def history(self, device: Device) -> str:
        url = reverse("admin:devices_deviceevent_changelist")
        return format_html('<a href="{}?q={}">What happened to it</a>', url, device.id)

    # --- actions ------------------------------------------------------------------------------------------------------
    @action(description="Kick: close the tunnel; the agent comes back by itself", permissions=["change"])  # type: ignore[untyped-decorator]  # unfold is untyped
    def kick_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> None:
        self._kick(request, list(queryset.values_list("id", flat=True)))

    @action(description="Dismiss the mark of a possible twin", permissions=["change"])  # type: ignore[untyped-decorator]  # unfold is untyped
    def dismiss_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> None:
        marked = queryset.filter(deleted_at=None, twin_at__isnull=False).order_by("id")
        done = 0
        for device_id in list(marked.values_list("id", flat=True)):
            try:
                services.dismiss_twin(actor=Actor.of(request), device_id=device_id, now=timezone.now())
                done += 1
            except DomainError:  # it was unpaired meanwhile
                continue
        self.message_user(request, f"{done} marks dismissed.", messages.SUCCESS if done else messages.WARNING)

    @action(description="Unpair: close the tunnel, end all tokens", permissions=["change"])  # type: ignore[untyped-decorator]  # unfold is untyped
    @asks_first(UNPAIR)
    def unpair_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> None:
        self._unpair(request, list(queryset.filter(deleted_at=None).order_by("id").values_list("id", flat=True)))

    @action(description="Kick", permissions=["change"])  # type: ignore[untyped-decorator]  # unfold is untyped
    def kick_this(self, request: HttpRequest, device: Device) -> None:
        self._kick(request, [device.id])

    @action(description="Unpair", permissions=["change"])  # type: ignore[untyped-decorator]  # unfold is untyped
    def unpair_this(self, request: HttpRequest, device: Device) -> None:
        """The button alone: `change_view` asks first, and the list's action does it."""

    def _kick(self, request: HttpRequest, device_ids: list[uuid.UUID]) -> None:
        try:
            closed = services.kick_devices(actor=Actor.of(request), device_ids=device_ids, now=timezone.now())
        except redis.exceptions.RedisError:
            self.message_user(request, "The registry cannot be reached right now.", messages.ERROR)
            return
        self.message_user(request, f"{closed} tunnels closed.", messages.SUCCESS if closed else messages.WARNING)

    def _unpair(self, request: HttpRequest, device_ids: list[uuid.UUID]) -> None:
        done = 0
        for device_id in device_ids:
            try:
                services.unpair_device(actor=Actor.of(request), owner_id=None, device_id=device_id, now=timezone.now())
                done += 1
            except DomainError:  # somebody else was quicker
                continue
        self.message_user(request, f"{done} devices unpaired.", messages.SUCCESS if done else messages.WARNING)


def _entry(device: Device) -> Entry | None:
    entries: Mapping[str, Entry] | None = getattr(device, "tunnel_entries", None)
    return entries.get(str(device.id)) if entries else None


def _fact(entries: Mapping[str, Entry] | None, device: Device) -> SessionFact | None:
    """What the daemon says of the tunnel; None if it does not answer: the page is of use then, too."""
    entry = entries.get(str(device.id)) if entries else None
    if entry is None:
        return None
    try:
        return daemon.session_fact(entry.node_url, entry.session)
    except DomainError:
        return None


@admin.register(Accelerator)
class AcceleratorAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("serial", "chip", "status", "usb_id", "firmware", "device", "seen_at")
    list_filter: ClassVar[Any] = ("chip", "status", ("seen_at", RangeDateTimeFilter))
    list_filter_submit = True
    list_select_related: ClassVar[Any] = ("device",)
    search_fields: ClassVar[Any] = ("serial", "device__name", "device__serial", "device__id")
    ordering: ClassVar[Any] = ("-seen_at", "serial")


@admin.register(DeviceEvent)
class DeviceEventAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("at", "action", "reason", "device_link", "address", "request_id")
    list_filter: ClassVar[Any] = ("action", ("at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields: ClassVar[Any] = ("=device_id", "request_id", "address")
    date_hierarchy = "at"
    ordering: ClassVar[Any] = ("-at", "-id")

    @display(description="Reason")  # type: ignore[untyped-decorator]  # unfold is untyped
    def reason(self, event: DeviceEvent) -> str:
        return str(event.detail.get("reason", ""))

    @display(description="Device")  # type: ignore[untyped-decorator]  # unfold is untyped
    def device_link(self, event: DeviceEvent) -> str:
        url = reverse("admin:devices_device_change", args=[event.device_id])
        return format_html('<a href="{}">{}</a>', url, event.device_id)
