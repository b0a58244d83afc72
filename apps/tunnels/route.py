"""Where a device's tunnel ends, as whoever sends something there needs to know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """Where a device's tunnel ends, as the registry says."""

    device_id: str
    node_url: str
    session: str
    epoch: int
    moving: bool = False
    """Its daemon drains, or did (then there is no session): there will soon be another."""
