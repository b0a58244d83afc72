"""JSON bodies: what their objects may cost, how long these live, and what is told of one that does not come whole."""

import gc
import io
import threading
import weakref

import pytest
import structlog.testing
from django.test import RequestFactory
from rest_framework.response import Response

from apps.accounts.api.views import LoginView
from apps.common.api.parsers import MAX_JSON_BYTES, StrictJsonParser
from apps.system import views

pytestmark = pytest.mark.django_db
LISTS = b'{"email": [' + b"[]," * 300_000 + b"[]]}"
KEYS = b"{" + b",".join(b'"%x":1' % number for number in range(70_000)) + b"}"


def answer(body: bytes = b"", **extra: object) -> Response:
    request = RequestFactory().post("/api/auth/login", data=body, content_type="application/json", **extra)
    return LoginView.as_view()(request)


@pytest.mark.parametrize("body", [LISTS, LISTS.replace(b"[]", b"{}"), KEYS])
def test_a_body_that_is_far_larger_as_objects_is_refused(body: bytes) -> None:
    """40 callers whom nobody knows took 9 GB of the API's memory with these."""
    assert len(body) <= MAX_JSON_BYTES
    told = answer(body)
    assert (told.status_code, told.data["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_the_parts_of_the_largest_upload_pass() -> None:
    part = b'{"number": 10000, "etag": "\\"%032x\\""}'
    body = b'{"parts": [' + b",".join(part % number for number in range(10_000)) + b"]}"
    assert len(StrictJsonParser().parse(io.BytesIO(body))["parts"]) == 10_000


@pytest.mark.parametrize("body", [b'{"email": 1}', b'{"email": "a@b.example", "password": "wrong-password"}'])
def test_what_was_asked_and_answered_is_gone_at_once(body: bytes) -> None:
    """Not when the collector comes: a large body would lie about until then."""
    gc.collect()
    gc.disable()
    try:
        told = answer(body)
        asked = weakref.ref(told.renderer_context["request"])
        assert told.render().status_code in (400, 401)
        del told
        assert asked() is None
    finally:
        gc.enable()


def test_a_body_in_chunks_that_breaks_off_is_no_fault_of_ours() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("the client left within the body")

    request = RequestFactory().post("/api/auth/login", content_type="application/json")
    del request.META["CONTENT_LENGTH"]
    request.META |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": Broken()}
    with structlog.testing.capture_logs() as lines:
        told = LoginView.as_view()(request)
    assert (told.status_code, told.data["error"]["code"]) == (400, "BAD_REQUEST")
    assert not [line for line in lines if line["log_level"] == "error"]


def test_the_schema_is_made_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once met in the library's registry of extensions: 500 for one in five of the first who asked."""
    at_work = most = 0
    both = threading.Barrier(2)

    class Generator:
        def get_schema(self, **_: object) -> dict[str, str]:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            try:
                both.wait(0.2)  # for another that is at it too
            except threading.BrokenBarrierError:
                pass
            at_work -= 1
            return {}

    views._generated.cache_clear()
    monkeypatch.setattr(views, "SchemaGenerator", Generator)
    threads = [threading.Thread(target=views._schema) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    views._generated.cache_clear()
    assert most == 1
