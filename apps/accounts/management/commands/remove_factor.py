"""`manage.py remove_factor EMAIL`: for the one operator who has lost the authenticator and the recovery codes."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.accounts import selectors
from apps.accounts.factors import owner
from apps.common.actor import Actor


class Command(BaseCommand):
    help = "Take a lost second factor off an account; the password alone opens it then."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email", help="the account's e-mail")

    def handle(self, *args: Any, **options: Any) -> None:
        user = selectors.by_email(options["email"])
        actor = Actor.system("manage.py")
        if user is None or not owner.remove(actor=actor, user_id=user.pk, now=timezone.now()):
            raise CommandError("remove_factor: there is no account of this e-mail with a second factor")
        self.stdout.write("removed")
