"""The agent's version: the project's."""

from __future__ import annotations

from typing import Final

from tunnel import __version__

VERSION: Final = __version__
