"""The settings, with the migration linter: `make lint` alone uses them, since no image holds the linter."""

from cloud import settings

globals().update({name: value for name, value in vars(settings).items() if name.isupper()})

INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_migration_linter"]
MIGRATION_LINTER_OPTIONS = {
    # Only our own migrations are ours to mend.
    "include_apps": [
        name.removeprefix("apps.")
        for name in settings.INSTALLED_APPS
        if name.startswith("apps.") and name.count(".") == 1
    ],
    "no_cache": True,
    "sql_analyser": "postgresql",  # our engine, cloud.db, is PostgreSQL with deadlines
}
