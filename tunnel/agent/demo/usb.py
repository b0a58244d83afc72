"""The accelerators that a scan reports: real Kneron devices from sysfs, and simulated ones.

`{serial, chip, usb_id, firmware, status}` each, by `docs/box-api.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypedDict

KNERON_VENDOR: Final = "3231"
CHIPS: Final = {"0100": "KL520", "0200": "KL720", "0720": "KL720", "0530": "KL530", "0630": "KL630", "0730": "KL730"}
SYSFS: Final = Path("/sys/bus/usb/devices")


class Accelerator(TypedDict):
    """One accelerator. `usb_id` is vendor:product in hex; `status` is ready, busy or error."""

    serial: str
    chip: str
    usb_id: str
    firmware: str
    status: str


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""  # unplugged between the listing and the reading


def real_accelerators(root: Path = SYSFS) -> list[Accelerator]:
    """What is plugged in and has Kneron's vendor id; empty without sysfs."""
    try:
        folders = sorted(root.iterdir())
    except OSError:
        return []
    found: list[Accelerator] = []
    for folder in folders:
        if _read(folder / "idVendor").lower() != KNERON_VENDOR:
            continue
        product = _read(folder / "idProduct").lower()
        release = _read(folder / "bcdDevice")
        found.append(
            Accelerator(
                serial=_read(folder / "serial") or f"usb-{folder.name}",
                chip=CHIPS.get(product, "unknown"),
                usb_id=f"{KNERON_VENDOR}:{product}",
                firmware=f"{int(release[:2])}.{release[2:4]}" if release.isdigit() and len(release) == 4 else "",
                status="ready",
            )
        )
    return found


def simulated_accelerators(serial: str) -> list[Accelerator]:
    """Two that do not exist, with serial numbers derived from the box's own."""
    return [
        Accelerator(serial=f"{serial}-KL520", chip="KL520", usb_id="3231:0100", firmware="2.2.0", status="ready"),
        Accelerator(serial=f"{serial}-KL720", chip="KL720", usb_id="3231:0200", firmware="2.2.0", status="ready"),
    ]
