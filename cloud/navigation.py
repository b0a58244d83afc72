"""The admin's sidebar: what an operator looks for, in the order of a working day."""

from typing import Any, Final

from django.urls import reverse_lazy


def _item(title: str, icon: str, view: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{view}")}


SECTIONS: Final[list[dict[str, Any]]] = [
    {
        "title": "Fleet",
        "items": [
            _item("Devices", "developer_board", "devices_device_changelist"),
            _item("Accelerators", "memory", "devices_accelerator_changelist"),
            _item("Device events", "history", "devices_deviceevent_changelist"),
        ],
    },
    {
        "title": "Pairing",
        "items": [
            _item("Pairing tokens", "qr_code", "pairing_pairingtoken_changelist"),
            _item("Session tokens", "key", "pairing_sessiontoken_changelist"),
        ],
    },
    {
        "title": "People",
        "items": [
            _item("Users", "person", "accounts_user_changelist"),
            _item("Audit trail", "policy", "audit_auditevent_changelist"),
        ],
    },
]
