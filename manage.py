#!/usr/bin/env python
"""Django's command line for VisionA Cloud."""

import os
import sys

from django.core.management import execute_from_command_line
from dotenv import dotenv_values

from cloud.embedded import EmbeddedError, ensure
from cloud.environment import BASE_DIR, SettingError

# Commands that read the code alone: they start no database (an image is built with none at hand).
OFFLINE = {"--help", "--version", "collectstatic", "diffsettings", "help", "makemessages", "spectacular", "version"}


def main() -> None:
    """Run one command; a setting that cannot be used ends it with one line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    file = {name: value for name, value in dotenv_values(BASE_DIR / ".env").items() if value}
    try:
        if command in OFFLINE:
            execute_from_command_line(sys.argv)
            return
        with ensure(BASE_DIR / "var", os.environ, who=f"manage.py {command}", below=file):
            execute_from_command_line(sys.argv)
    except (SettingError, EmbeddedError) as error:
        sys.exit(f"visiona: {error}")


if __name__ == "__main__":
    main()
