"""`manage.py add_builtin_model`: a model that everybody may read and deploy, from a file on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.common.actor import Actor
from apps.common.errors import DomainError
from apps.model_registry.models import ModelSource
from apps.model_registry.services import Facts, create_ready


class Command(BaseCommand):
    help = "Add a built-in model: everybody may read and deploy it, nobody may change it through the API."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="the model's file")
        parser.add_argument("--name", required=True)
        parser.add_argument("--model-version", required=True, help="its version")
        parser.add_argument("--chip", action="append", default=[], help="a chip that it runs on; repeatable")
        parser.add_argument("--description", default="")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        facts = Facts(
            name=options["name"],
            version=options["model_version"],
            filename=path.name,
            description=options["description"],
            format=path.suffix[1:].lower(),
            chips=options["chip"],
        )
        try:
            with path.open("rb") as stream:
                model = create_ready(
                    actor=Actor.system("manage.py"),
                    owner_id=None,
                    facts=facts,
                    stream=stream,
                    source=ModelSource.BUILTIN,
                    now=timezone.now(),
                )
        except OSError as error:
            raise CommandError(f"add_builtin_model: {path}: {error.strerror}") from error
        except DomainError as error:
            raise CommandError(f"add_builtin_model: {error.message}") from error
        self.stdout.write(f"{model.id} {model.name} {model.version}: {model.size} bytes")
