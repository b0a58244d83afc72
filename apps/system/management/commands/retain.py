"""`manage.py retain`: delete what is kept no longer, as the worker does every hour; on any host, at any time."""

from __future__ import annotations

from typing import Any, Final

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from apps.audit.retention import AUDIT, Rule, sweep
from apps.common.actor import Actor
from apps.devices.retention import DELETED, EVENTS

RULES: Final[tuple[Rule, ...]] = (EVENTS, AUDIT, DELETED)


class Command(BaseCommand):
    help = "Delete device events, audit events and deleted devices that are kept no longer (VISIONA_KEEP_*)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="count only, delete nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        for rule in RULES:
            dry = options["dry_run"]
            rows = rule.rows(now).count() if dry else sweep(rule, actor=Actor.system("retain"), now=now)
            self.stdout.write(f"{rule.what} older than {rule.days} d: {rows} {'to delete' if dry else 'deleted'}")
