"""Bring the schema up to date and seed the demo data, in one process: ``python -m cloud.supervisor.database``.

Writes what ``seed --json`` says to its standard output: the supervisor itself loads no Django.
"""

import os
import sys

import django
from django.core.management import call_command


def main() -> None:
    """Migrate, then seed; both change nothing when there is nothing to do."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    django.setup()
    call_command("migrate", verbosity=0, interactive=False, stdout=sys.stderr)
    call_command("seed", json=True)


if __name__ == "__main__":
    main()
