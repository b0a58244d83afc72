"""`manage.py backup FOLDER`: the database and the models' bytes, while everything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.common.errors import DomainError
from apps.system.backup import BackupError, backup


class Command(BaseCommand):
    help = "Write a backup of the database and of the models' bytes into a folder; again into the same: what is new."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            backup(options["folder"], self.stdout.write)
        except (BackupError, DomainError, OSError) as error:
            raise CommandError(f"backup: {error}") from None
