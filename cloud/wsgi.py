"""The WSGI entry point that gunicorn serves: its master (`cloud.server.master`) loads it and forks its workers."""

import os
import sys

from django.core.wsgi import get_wsgi_application
from django.urls import resolve

from cloud.environment import SettingError

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")

try:
    application = get_wsgi_application()
    resolve("/healthz")  # every view is loaded here, before anything listens, and not by its first caller
except SettingError as error:
    print(f"visiona: {error}", file=sys.stderr)  # noqa: T201 - the one line, before logging is set up
    sys.exit(1)
