"""How many queries one call of the API takes: ``python -m benchmarks.queries``; JSON (path, token) in, a number out."""

import json
import os
import sys

import django


def main() -> None:
    """The call twice, the second counted: what is made once a process does not count."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    django.setup()
    from django.db import connection  # noqa: PLC0415 - Django has to be set up before
    from django.test import Client  # noqa: PLC0415 - as above
    from django.test.utils import CaptureQueriesContext  # noqa: PLC0415 - as above

    asked = json.load(sys.stdin)
    client = Client(headers={"Authorization": f"Bearer {asked['token']}"})
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as seen:
            answer = client.get(asked["path"], SERVER_NAME="localhost")
        counts.append(len(seen))
        if answer.status_code != 200:
            raise SystemExit(f"{asked['path']}: {answer.status_code} {answer.content[:500]!r}")
    json.dump(counts[-1], sys.stdout)


if __name__ == "__main__":
    main()
