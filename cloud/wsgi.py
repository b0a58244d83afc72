"""The WSGI entry point that gunicorn serves. What must be true before is `cloud.startup`'s, in gunicorn's master."""

import os
import sys

from django.core.wsgi import get_wsgi_application
from django.urls import resolve

from apps.common import metrics
from cloud.environment import SettingError

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")

try:
    application = get_wsgi_application()
    metrics.allocate()
    resolve("/healthz")  # every view is loaded here, before the worker listens, and not by its first caller
except SettingError as error:
    print(f"visiona: {error}", file=sys.stderr)  # noqa: T201 - the one line, before logging is set up
    sys.exit(4)  # gunicorn's own code for an application that cannot be loaded: the master ends too
