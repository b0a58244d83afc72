"""Which viewers may watch one answer together, and how one daemon tells another."""

from __future__ import annotations

import base64
from typing import Protocol

Key = tuple[str, str, int, bytes]
"""Device, user, the device's epoch, and the request line for the box. Cookies and credentials never reach a box."""


class Holder(Protocol):
    """The tunnel session whose box is watched."""

    @property
    def device_id(self) -> str:
        """Its box."""

    @property
    def epoch(self) -> int:
        """Its admission."""


def path_key(key: Key) -> Key:
    """The same for whatever query: no request line, so nothing else is kept under it."""
    return *key[:3], key[3].partition(b"?")[0].partition(b" HTTP/")[0]


def share_of(key: Key) -> str:
    """The header's value: for whom, and the request line for the box. A session names device and admission."""
    return f"{key[1]} {base64.b64encode(key[3]).decode()}"


def key_of_share(said: str, session: Holder) -> Key | None:
    """Who may watch together, as `share_of` said it; None for what it never says."""
    user, _, coded = said.partition(" ")
    try:
        line = base64.b64decode(coded, validate=True)
    except ValueError:
        return None
    return (session.device_id, user, session.epoch, line) if user and line.startswith(b"GET ") else None
