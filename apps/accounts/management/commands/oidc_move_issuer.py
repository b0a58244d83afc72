"""`manage.py oidc_move_issuer OLD NEW`: the provider's URL has changed, and with it the `iss` of all its tokens."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.accounts.oidc import owner
from apps.common.actor import Actor
from apps.common.errors import DomainError


class Command(BaseCommand):
    help = "Move everybody of one OpenID issuer to another, spelled as in its discovery document (a slash counts)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("old", help="the issuer that the identities are of")
        parser.add_argument("new", help="the issuer that they are to be of")

    def handle(self, *args: Any, **options: Any) -> None:
        old, new = options["old"], options["new"]
        try:
            moved = owner.move_issuer(actor=Actor.system("manage.py"), old=old, new=new, now=timezone.now())
        except DomainError as error:
            raise CommandError(f"oidc_move_issuer: {error.message}") from error
        self.stdout.write(f"{moved} identities are of {new} now")
