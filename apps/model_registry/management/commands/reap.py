"""`manage.py reap`: what the worker does every hour, at once. On any host, as often as one likes."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.common.errors import DomainError
from apps.model_registry.upkeep import reap


class Command(BaseCommand):
    help = "Remove uploads given up for a day, models deleted long ago, and bytes that no model speaks of."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="count, and remove nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            found = reap(now=timezone.now(), dry_run=options["dry_run"])
        except DomainError as error:
            raise CommandError(f"reap: {error.message}") from error
        self.stdout.write(str(found))
