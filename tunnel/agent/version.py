"""The agent's version, as the wheel says it."""

from __future__ import annotations

from importlib import metadata


def _find() -> str:
    try:
        return metadata.version("visiona-agent")
    except metadata.PackageNotFoundError:
        return "0.0.0+source"  # run from a checkout


VERSION = _find()
