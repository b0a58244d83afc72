"""`manage.py set_email`: another address for an account, where a migration found two accounts of one address."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.accounts import credentials
from apps.common.actor import Actor
from apps.common.emails import check_email
from apps.common.errors import DomainError


class Command(BaseCommand):
    help = "Give an account another e-mail address; it is as confirmed as the old one was, which is told."
    requires_system_checks = ()
    requires_migrations_checks = False  # it is needed between two of them

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", type=uuid.UUID, help="the account's id")
        parser.add_argument("email", help="its new address")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            check_email(options["email"])
            credentials.set_email(
                actor=Actor.system("manage.py"), user_id=options["user"], email=options["email"], now=timezone.now()
            )
        except ValidationError as error:
            raise CommandError(f"set_email: {' '.join(error.messages)}") from error
        except DomainError as error:
            raise CommandError(f"set_email: {error.message}") from error
        self.stdout.write(f"{options['user']} {options['email']}")
