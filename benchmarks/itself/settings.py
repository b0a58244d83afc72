"""The project's settings, and the routes of the benchmark."""

from cloud import settings as project

globals().update({name: value for name, value in vars(project).items() if name.isupper()})
ROOT_URLCONF = "benchmarks.itself.urls"
