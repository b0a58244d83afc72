"""`manage.py restore FOLDER`: a backup into an empty database, while nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.common.errors import DomainError
from apps.system.backup import BackupError, restore


class Command(BaseCommand):
    help = "Restore a backup into an empty database and the object store. Stop api, tunnel and worker before."
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            restore(options["folder"], self.stdout.write)
        except (BackupError, DomainError, OSError) as error:
            raise CommandError(f"restore: {error}") from None
