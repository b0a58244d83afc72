"""Bring the schema up to date and seed the demo data, in one process: ``python -m cloud.supervisor.database``.

Writes the demo login to its standard output, as JSON: the supervisor itself loads no Django.
"""

import json
import os
import sys

import django
from django.core.management import call_command


def main() -> None:
    """Migrate, then seed; both change nothing when there is nothing to do."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    django.setup()
    call_command("migrate", verbosity=0, interactive=False)
    call_command("seed", verbosity=0, stdout=sys.stderr)
    from apps.accounts.demo import DEMO_EMAIL, DEMO_PASSWORD  # noqa: PLC0415 - models load after django.setup()

    json.dump({"email": DEMO_EMAIL, "password": DEMO_PASSWORD}, sys.stdout)


if __name__ == "__main__":
    main()
