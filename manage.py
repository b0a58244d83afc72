#!/usr/bin/env python
"""Django's command line for VisionA Cloud."""

import os
import sys

from django.core.management import execute_from_command_line

from cloud.environment import SettingError


def main() -> None:
    """Run one command; a setting that cannot be used ends it with one line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    try:
        execute_from_command_line(sys.argv)
    except SettingError as error:
        sys.exit(f"visiona: {error}")


if __name__ == "__main__":
    main()
