"""The environment, typed: `VISIONA_*` from the process and from `.env`, read once.

It does not know Django: settings.py turns these values into Django's.
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values

from tunnel.contract import PREFIX, SettingError, read_settings

__all__ = ["BASE_DIR", "SettingError", "load"]

BASE_DIR: Final = Path(__file__).resolve().parent.parent


def load() -> dict[str, Any]:
    """The settings of the control plane by name, without the prefix. The process's environment wins over `.env`.

    Warns on stderr of unknown names. Raises SettingError for a value that cannot be used.
    """
    from_file = {key: value for key, value in dotenv_values(BASE_DIR / ".env").items() if value is not None}
    merged = {**from_file, **os.environ}
    values, warnings = read_settings({k: v for k, v in merged.items() if k.startswith(PREFIX)}, "api")
    for line in warnings:
        print(f"visiona: warning: {line}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
    return values
