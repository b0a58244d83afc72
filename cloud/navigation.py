"""The admin's look: its colour, and the sidebar: what an operator looks for, in the order of a working day."""

from typing import Any, Final

from django.urls import reverse_lazy

TEAL: Final = {
    "50": "#eefaf9",
    "100": "#d4f2f0",
    "200": "#abe4e0",
    "300": "#75cfca",
    "400": "#3fb0ab",
    "500": "#1f9490",
    "600": "#0b6e6e",
    "700": "#0b5c5d",
    "800": "#0c4a4c",
    "900": "#0d3d40",
    "950": "#062527",
}
"""The console's `--accent` (#0b6e6e) with its shades; 600 carries white text (contrast 6.0 : 1, WCAG 2 AA)."""


def _item(title: str, icon: str, view: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{view}")}


SECTIONS: Final[list[dict[str, Any]]] = [
    {
        "title": "Fleet",
        "items": [
            _item("Devices", "developer_board", "devices_device_changelist"),
            _item("Accelerators", "memory", "devices_accelerator_changelist"),
            _item("Models", "neurology", "model_registry_aimodel_changelist"),
            _item("Deployments", "deployed_code_update", "deployments_deployment_changelist"),
            _item("Clusters", "lan", "clusters_cluster_changelist"),
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
        "title": "Converter",
        "items": [_item("Conversions", "swap_horiz", "converter_conversion_changelist")],
    },
    {
        "title": "Webhooks",
        "items": [
            _item("Webhooks", "webhook", "webhooks_webhook_changelist"),
            _item("Deliveries", "outbox", "webhooks_webhookdelivery_changelist"),
        ],
    },
    {
        "title": "People",
        "items": [
            _item("Users", "person", "accounts_user_changelist"),
            _item("Identities", "badge", "accounts_useridentity_changelist"),
            _item("Second factors", "phonelink_lock", "accounts_secondfactor_changelist"),
            _item("Passkeys", "passkey", "accounts_passkey_changelist"),
            _item("Audit trail", "policy", "audit_auditevent_changelist"),
        ],
    },
]
