"""A program that uploads a model again and again, and is killed by itself at the first, second, third … thing it does.

Run as ``python -m tests.system.power_cut``, with the settings in the environment. For each place it forks, and the
child sends itself SIGKILL just before its n-th step that the world outside could notice: a change of a file or folder,
an fsync, a change or a commit in the database, a request to S3, a piece of the body. Then the parent looks at what is
left, lets the reaper work as if a day had passed, and looks again. It ends with the first child that is not killed.

Prints a JSON list: for each place what the child was about to do, and what is wrong (nothing, if all is well).
"""

import datetime as dt
import hashlib
import http.client
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.httpsession
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
django.setup()

from django.db import connection, connections  # noqa: E402 - after the setup
from django.db.backends.utils import CursorWrapper  # noqa: E402 - as above
from django.utils import timezone  # noqa: E402 - as above

from apps.accounts.models import User  # noqa: E402 - as above
from apps.common.actor import Actor  # noqa: E402 - as above
from apps.model_registry import finalization, services, upkeep  # noqa: E402 - as above
from apps.model_registry.models import AIModel, ModelSource  # noqa: E402 - as above
from apps.storage import local  # noqa: E402 - as above
from apps.storage import services as storage  # noqa: E402 - as above

DATA: Final = bytes(range(256)) * 10
PIECE: Final = 1000
PLACES_MOST: Final = 200
ACTOR: Final = Actor.system("power cut")
FILE_EVENTS: Final = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"})


class Countdown:
    """Kills the process at its n-th step."""

    def __init__(self, left: int, told: int) -> None:
        self.left, self.told = left, told

    def step(self, what: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.write(self.told, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, what: str) -> None:
        """Lets a function of `owner` count as a step."""
        inner: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step(what)
            return inner(*args, **kwargs)

        setattr(owner, name, counted)

    def watch(self) -> None:
        self.around(os, "fsync", "fsync")
        execute = CursorWrapper.execute

        def counted(cursor: Any, sql: Any, params: Any = None) -> Any:
            if str(sql).startswith(("INSERT", "UPDATE", "DELETE")):
                self.step("statement")
            return execute(cursor, sql, params)

        CursorWrapper.execute = counted  # type: ignore[method-assign]  # in this process alone
        self.around(type(connection._connections[connection._alias]), "_commit", "commit")
        self.around(botocore.httpsession.URLLib3Session, "send", "request to S3")
        sys.addaudithook(lambda event, _args: self.step(event) if event in FILE_EVENTS else None)


class Pieces(io.BytesIO):
    """A body whose every piece is a step."""

    countdown: Countdown

    def read(self, size: int | None = -1, /) -> bytes:
        self.countdown.step("a piece of the body")
        return super().read(size)


def upload(countdown: Countdown, owner: User, name: str) -> None:
    """All the steps of an upload, and one of a model of bytes at hand."""
    facts = services.Facts(name, "1", "a.nef")
    model, sending = services.begin_upload(
        actor=ACTOR, owner_id=owner.pk, facts=facts, size=len(DATA), sha256="", base_url="http://x", now=timezone.now()
    )
    body = Pieces(DATA)
    body.countdown = countdown
    if sending.url.startswith("http://x/"):
        storage.local_store().receive(sending.key, body, limit=len(DATA))
    else:
        parts = urlsplit(sending.url)
        link = http.client.HTTPConnection(parts.netloc, timeout=30)
        link.request("PUT", f"{parts.path}?{parts.query}", DATA, sending.headers)
        assert link.getresponse().status == 200
        link.close()
    services.finalize(actor=ACTOR, owner_id=owner.pk, model_id=model.id, parts=None, now=timezone.now())
    body.seek(0)
    facts = services.Facts(name, "2", "b.nef")
    services.create_ready(
        actor=ACTOR, owner_id=owner.pk, facts=facts, stream=body, source=ModelSource.UPLOAD, now=timezone.now()
    )
    services.delete_model(actor=ACTOR, owner_id=owner.pk, model_id=model.id, now=timezone.now())
    upkeep.reap(now=timezone.now() + dt.timedelta(days=31))


def clean() -> None:
    """So that each place begins with nothing but what `left` has complained of."""
    for key in AIModel.objects.values_list("object_key", flat=True):
        storage.store().discard(key)
    AIModel.objects.all().delete()


def killed_at(place: int, owner: User) -> str:
    """What the child was about to do; empty if it came to its end."""
    heard, told = os.pipe()
    connections.close_all()
    connection.close_pool()
    child = os.fork()
    if not child:
        try:
            countdown = Countdown(place, told)
            countdown.watch()
            upload(countdown, owner, f"m{place}")
        except BaseException:  # noqa: BLE001 - told, and then nothing of the parent may run
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(told)
    with os.fdopen(heard, "rb") as pipe:
        what = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    if bool(what) != os.WIFSIGNALED(status) or (not what and status):
        raise SystemExit(f"the child ended with {status} at place {place} ({what})")
    return what


def wrong() -> list[str]:
    """Ready models without their very bytes."""
    found = []
    for model in AIModel.objects.filter(status="ready"):
        try:
            with storage.open_range(key=model.object_key, start=0, length=model.size) as pieces:
                digest = hashlib.sha256(b"".join(pieces)).hexdigest()
        except services.DomainError as error:
            found.append(f"{model} is ready: {error}")
            continue
        if digest != model.sha256 or digest != hashlib.sha256(DATA).hexdigest():
            found.append(f"{model} has other bytes")
    return found


def left() -> list[str]:
    """What the reaper should have found."""
    rows = AIModel.objects.exclude(status="ready")
    keys = {each.key + each.upload_id for each in storage.store().leftovers()}
    kept = set(AIModel.objects.filter(status="ready").values_list("object_key", flat=True))
    return [f"{row} is pending still" for row in rows] + sorted(f"{key} is there still" for key in keys - kept)


def work_instead(_seconds: float) -> None:
    """Who waits for the check of an upload does it: so that its steps are steps of this process."""
    services.check_uploads(leaving=lambda: False)


def main() -> int:
    local.CHUNK = PIECE  # type: ignore[misc]  # a body of three pieces
    finalization.pause = work_instead
    owner = User.objects.create_user("power@example.com", "x" * 12)
    told = []
    for place in range(1, PLACES_MOST):
        what = killed_at(place, owner)
        faults = wrong()
        upkeep.reap(now=timezone.now() + dt.timedelta(hours=25))
        faults += wrong() + left()
        clean()
        told.append({"place": place, "what": what, "wrong": faults})
        if not what:
            break
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
