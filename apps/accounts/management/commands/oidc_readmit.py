"""`manage.py oidc_readmit ISSUER SUBJECT`: somebody whose account was ended may come back by a token alone."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.accounts.oidc import owner
from apps.common.actor import Actor


class Command(BaseCommand):
    help = "Let the JWTs of a subject whose account was ended, or who was unlinked, make or link an account again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("issuer", help="as in the provider's tokens")
        parser.add_argument("subject", help="their `sub`")

    def handle(self, *args: Any, **options: Any) -> None:
        who = {"issuer": options["issuer"], "subject": options["subject"]}
        if not owner.readmit(actor=Actor.system("manage.py"), **who, now=timezone.now()):
            raise CommandError("oidc_readmit: no account of this subject was ended, nor was it unlinked")
        self.stdout.write("readmitted")
