"""How mail leaves, in the words of the Django that runs: MAILERS from 6.1 on, where EMAIL_* are deprecated."""

from collections.abc import Mapping
from typing import Any

import django


def mail_settings(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Django's settings of mail out of ours (``EMAIL_*``, no prefix); without a host it is written to ``folder``."""
    smtp: dict[str, Any] = {
        "host": values["EMAIL_HOST"],
        "port": values["EMAIL_PORT"],
        "username": values["EMAIL_USER"],
        "password": values["EMAIL_PASSWORD"],
        "use_tls": values["EMAIL_SECURITY"] == "starttls",
        "use_ssl": values["EMAIL_SECURITY"] == "tls",
        "timeout": values["EMAIL_TIMEOUT_SECONDS"],
    }
    files: dict[str, Any] = {"file_path": folder}
    backend = f"django.core.mail.backends.{'smtp' if values['EMAIL_HOST'] else 'filebased'}.EmailBackend"
    if django.VERSION >= (6, 1):
        return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": smtp if values["EMAIL_HOST"] else files}}}
    old_names = {"username": "host_user", "password": "host_password"}
    named = {f"EMAIL_{old_names.get(name, name)}".upper(): value for name, value in {**smtp, **files}.items()}
    return {"EMAIL_BACKEND": backend, **named}
