#!/usr/bin/env python
"""Django's command line for VisionA Cloud."""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from dotenv import dotenv_values

from cloud import startup
from cloud.embedded import EmbeddedError, ensure
from cloud.environment import BASE_DIR, SettingError

# Commands that read the code alone: they start no database (an image is built with none at hand).
OFFLINE = {"--help", "--version", "collectstatic", "diffsettings", "help", "makemessages", "spectacular", "version"}
# Those that work on the data, as a job of an installation: they wait for its servers as the API does.
ON_DATA = {"add_builtin_model", "migrate", "reap", "retain", "seed"}
WORKER = ["procrastinate", "worker"]


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
            wait_for_servers(sys.argv[1:])
            execute_from_command_line(sys.argv)
    except (SettingError, EmbeddedError, startup.StartupError) as error:
        sys.exit(f"visiona: {error}")


def wait_for_servers(command: list[str]) -> None:
    """Returns once the servers that the command's work needs answer. Raises StartupError with the address of one."""
    if {"-h", "--help"}.intersection(command):
        return
    worker = command[:2] == WORKER
    if worker or ON_DATA.intersection(command[:1]):
        startup.wait_for_database(settings.VISIONA)
    if worker:
        startup.wait_for_redis(settings.VISIONA)


if __name__ == "__main__":
    main()
