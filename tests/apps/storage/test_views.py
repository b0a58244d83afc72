"""`/storage/{signed}` on the local store: sending and fetching bytes, and all that must not work."""

import datetime as dt
import errno
import io
import json
import os
import time
from io import BytesIO
from pathlib import Path

import pytest
from django.test import Client

from apps.storage import services as storage
from apps.storage.api.room import places
from apps.storage.base import Promise
from apps.storage.local import LocalStore
from apps.storage.signing import Grant, sign
from cloud import logs
from tests.apps.stores import request, sha256

DATA = bytes(range(256)) * 40
BASE = "http://testserver"


@pytest.fixture
def sending(local, db):
    """An upload of DATA that may be sent."""
    upload_key, object_key = storage.new_keys()
    promise = Promise(upload_key, object_key, len(DATA), "", dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    return local.folder / upload_key, storage.local_store().begin(promise, base_url=BASE), promise


@pytest.fixture
def kept(local, db):
    """An object that is there, and its grant."""
    _upload_key, object_key = storage.new_keys()
    storage.store().put(object_key, BytesIO(DATA), limit=len(DATA))
    return Grant("GET", object_key, len(DATA), int(time.time()) + 900, "a b.nef", sha256(DATA))


def url_of(grant, settings):
    return f"{BASE}/storage/{sign(grant, settings.VISIONA['STORAGE_SIGNING_SECRET'])}"


def code(sent):
    return json.loads(sent.body)["error"]["code"]


# --- sending ----------------------------------------------------------------------------------------------------------
def test_sent(sending):
    slot, upload, _promise = sending
    sent = request("PUT", upload.url, DATA, upload.headers)
    assert (sent.status, sent.headers["etag"]) == (201, f'"{sha256(DATA)}"')
    assert [path.name for path in slot.iterdir()] == [sha256(DATA)]
    assert next(slot.iterdir()).read_bytes() == DATA


def test_a_byte_too_many(sending):
    slot, upload, _promise = sending
    sent = request("PUT", upload.url, DATA + b"x")
    assert (sent.status, code(sent)) == (413, "PAYLOAD_TOO_LARGE")
    assert json.loads(sent.body)["error"]["details"] == {"size": [f"At most {len(DATA)} bytes."]}
    assert list(slot.iterdir()) == []


def test_a_byte_too_many_in_chunks(sending):
    """No length is announced: it is seen while reading."""
    slot, upload, _promise = sending
    client = Client(raise_request_exception=False)
    path = upload.url.removeprefix(BASE)
    answer = client.generic("PUT", path, **{"wsgi.input": BytesIO(DATA + b"x" * (3 << 20))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert list(slot.iterdir()) == []
    assert client.generic("PUT", path, **{"wsgi.input": BytesIO(DATA)}).status_code == 201


def test_what_breaks_off_leaves_nothing_and_harms_nothing(sending):
    slot, upload, _promise = sending
    request("PUT", upload.url, DATA)

    class Broken(io.RawIOBase):
        left = 3

        def read(self, size=-1):
            self.left -= 1
            if not self.left:
                raise ConnectionResetError
            return b"x" * 1000

    path = upload.url.removeprefix(BASE)
    client = Client(raise_request_exception=False)
    answer = client.generic("PUT", path, **{"wsgi.input": Broken(), "CONTENT_LENGTH": str(len(DATA))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BAD_REQUEST")
    short = client.generic("PUT", path, **{"wsgi.input": BytesIO(b"half"), "CONTENT_LENGTH": str(len(DATA))})
    assert short.status_code == 400
    assert [path.name for path in slot.iterdir()] == [sha256(DATA)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_or_fails(sending, monkeypatch, number):
    slot, upload, _promise = sending

    def fail(_fd):
        raise OSError(number, "x")

    monkeypatch.setattr(os, "fsync", fail)
    sent = request("PUT", upload.url, DATA)
    assert (sent.status, code(sent)) == (503, "DATABASE_UNAVAILABLE")
    assert sent.headers["retry-after"] == ("30" if number == errno.ENOSPC else "5")
    assert list(slot.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_disk_that_is_full_amid_the_bytes(sending, monkeypatch):
    """The system's own refusal, of a write; afterwards the same URL is good."""
    slot, upload, _promise = sending
    with monkeypatch.context() as patch:
        patch.setattr("apps.storage.local._private", lambda _path, _flags: os.open("/dev/full", os.O_WRONLY))
        sent = request("PUT", upload.url, DATA)
    assert (sent.status, code(sent)) == (503, "DATABASE_UNAVAILABLE")
    assert json.loads(sent.body)["error"]["details"] == {"part": ["storage"]}
    assert list(slot.iterdir()) == []
    assert request("PUT", upload.url, DATA).status == 201


def test_an_upload_that_is_over(sending):
    slot, upload, promise = sending
    request("PUT", upload.url, DATA)
    storage.store().settle(promise)
    sent = request("PUT", upload.url, DATA[::-1])
    assert (sent.status, code(sent)) == (403, "SIGNATURE_INVALID")
    assert not slot.exists()
    with storage.open_range(key=promise.object_key, start=0, length=len(DATA)) as pieces:
        assert b"".join(pieces) == DATA


def test_an_upload_that_ends_while_bytes_arrive(sending):
    slot, upload, promise = sending

    class Slow(BytesIO):
        def read(self, size=-1):
            storage.store().discard(promise.upload_key)
            return super().read(size)

    answer = Client(raise_request_exception=False).generic(
        "PUT", upload.url.removeprefix(BASE), **{"wsgi.input": Slow(DATA)}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "SIGNATURE_INVALID")
    assert not slot.exists()


# --- who may ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
@pytest.mark.parametrize("signed", ["x", "a.b", "..", "%2e%2e", "W10.W10", "x" * 4500])
def test_forged(local, db, method, signed):
    sent = request(method, f"{BASE}/storage/{signed}", b"x" if method == "PUT" else None)
    assert sent.status == 403
    assert method == "HEAD" or code(sent) == "SIGNATURE_INVALID"


def test_the_signature_comes_before_the_size(sending):
    _slot, upload, _promise = sending
    sent = request("PUT", upload.url[:-2], DATA + b"x")
    assert (sent.status, code(sent)) == (403, "SIGNATURE_INVALID")


def test_expired(kept, settings):
    past = Grant("GET", kept.key, kept.size, int(time.time()) - 1, "", kept.sha256)
    assert code(request("GET", url_of(past, settings))) == "SIGNATURE_INVALID"


def test_a_url_for_another_method(sending, kept, settings):
    _slot, upload, _promise = sending
    assert code(request("GET", upload.url)) == "SIGNATURE_INVALID"
    assert code(request("PUT", url_of(kept, settings), b"x")) == "SIGNATURE_INVALID"
    refused = request("POST", upload.url, b"x")
    assert (refused.status, code(refused)) == (405, "METHOD_NOT_ALLOWED")
    assert request("DELETE", upload.url).status == 405


def test_secrets_are_rotated(kept, settings):
    url = url_of(kept, settings)
    settings.VISIONA = {
        **settings.VISIONA,
        "STORAGE_SIGNING_SECRET": ("new", *settings.VISIONA["STORAGE_SIGNING_SECRET"]),
    }
    assert request("GET", url).status == 200
    settings.VISIONA = {**settings.VISIONA, "STORAGE_SIGNING_SECRET": ("new",)}
    assert request("GET", url).status == 403


@pytest.mark.parametrize(
    "key",
    [
        "../../etc/passwd",
        "uploads/../../x",
        "/etc/passwd",
        "models//x",
        "models/ab/../..",
        "uploads/",
        "x/y",
        "",
        "models/A",
    ],
)
def test_no_key_leads_out_of_the_folder(local, settings, key):
    """Even one that we signed ourselves."""
    store = storage.local_store()
    with pytest.raises(ValueError):
        store.open(key)
    with pytest.raises(ValueError):
        store.discard(key)
    with pytest.raises(ValueError):
        store.put(key, BytesIO(b"x"), limit=1)


def test_no_query(kept, settings):
    refused = Client().get(url_of(kept, settings).removeprefix(BASE) + "?x=1")
    assert refused.json()["error"]["code"] == "VALIDATION_ERROR"


def test_what_is_gone(kept, settings):
    storage.store().discard(kept.key)
    assert code(request("GET", url_of(kept, settings))) == "NOT_FOUND"


# --- fetching ---------------------------------------------------------------------------------------------------------
def fetch(kept, settings, method="GET", **headers):
    return request(method, url_of(kept, settings), headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_the_whole(kept, settings):
    got = fetch(kept, settings)
    assert (got.status, got.body) == (200, DATA)
    assert got.headers["etag"] == f'"{kept.sha256}"'
    assert got.headers["content-length"] == str(len(DATA))
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"] == 'attachment; filename="a b.nef"'
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_the_head_alone(kept, settings):
    got, head = fetch(kept, settings), fetch(kept, settings, "HEAD")
    assert (head.status, head.body) == (200, b"")
    volatile = ("x-request-id",)
    assert {k: v for k, v in head.headers.items() if k not in volatile} == {
        k: v for k, v in got.headers.items() if k not in volatile
    }
    assert fetch(kept, settings, "HEAD", Range="bytes=0-1").headers["content-length"] == str(len(DATA))


def test_a_part(kept, settings):
    got = fetch(kept, settings, Range="bytes=100-199")
    assert (got.status, got.body) == (206, DATA[100:200])
    assert got.headers["content-range"] == f"bytes 100-199/{len(DATA)}"
    assert got.headers["content-length"] == "100"
    suffix = fetch(kept, settings, Range="bytes=-7")
    assert (suffix.status, suffix.body) == (206, DATA[-7:])


def test_several_parts(kept, settings):
    got = fetch(kept, settings, Range="bytes=0-1,10-12")
    assert got.status == 206
    assert len(got.body) == int(got.headers["content-length"])
    kind, _, boundary = got.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    pieces = got.body.split(f"--{boundary}".encode())
    assert pieces[-1] == b"--\r\n"
    bodies = [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces[1:-1]]
    assert bodies == [DATA[0:2], DATA[10:13]]
    assert f"Content-Range: bytes 10-12/{len(DATA)}".encode() in pieces[2]


def test_a_part_that_is_not_there(kept, settings):
    got = fetch(kept, settings, Range=f"bytes={len(DATA)}-")
    assert (got.status, code(got)) == (416, "RANGE_NOT_SATISFIABLE")
    assert got.headers["content-range"] == f"bytes */{len(DATA)}"


def test_what_the_caller_has_already(kept, settings):
    tag = f'"{kept.sha256}"'
    modified = fetch(kept, settings).headers["last-modified"]
    for headers in (
        {"If_None_Match": tag},
        {"If_None_Match": f'"x", W/{tag}'},
        {"If_None_Match": "*"},
        {"If_Modified_Since": modified},
    ):
        got = fetch(kept, settings, **headers)
        assert (got.status, got.body) == (304, b"")
        assert got.headers["etag"] == tag
        assert got.headers["content-length"] == str(len(DATA))  # that of a 200 (RFC 9110 §8.6), never 0
    assert fetch(kept, settings, If_None_Match='"x"').status == 200
    assert fetch(kept, settings, If_None_Match='"x"', If_Modified_Since=modified).status == 200


@pytest.mark.parametrize("same", [True, False])
def test_a_part_of_what_the_caller_knows(kept, settings, same):
    first = fetch(kept, settings)
    tag = first.headers["etag"] if same else '"x"'
    assert fetch(kept, settings, Range="bytes=0-1", If_Range=tag).status == (206 if same else 200)
    date = first.headers["last-modified"] if same else "Thu, 01 Jan 1970 00:00:00 GMT"
    assert fetch(kept, settings, Range="bytes=0-1", If_Range=date).status == (206 if same else 200)
    assert fetch(kept, settings, Range="bytes=0-1", If_Range=f"W/{tag}").status == 200


def test_a_name_in_chinese(kept, settings):
    named = Grant("GET", kept.key, kept.size, kept.expires, '模型".nef', kept.sha256)
    got = request("GET", url_of(named, settings))
    assert got.headers["content-disposition"] == "attachment; filename*=utf-8''%E6%A8%A1%E5%9E%8B%22.nef"


def test_another_origin(kept, settings):
    client = Client()
    path = url_of(kept, settings).removeprefix(BASE)
    answer = client.head(path, HTTP_ORIGIN="http://localhost:3000")
    assert answer["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert "Content-Range" in answer["Access-Control-Expose-Headers"]
    preflight = client.options(
        path, HTTP_ORIGIN="http://localhost:3000", HTTP_ACCESS_CONTROL_REQUEST_METHOD="PUT",
        HTTP_ACCESS_CONTROL_REQUEST_HEADERS="content-type",
    )  # fmt: skip
    assert preflight.status_code == 200
    assert "PUT" in preflight["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Origin" not in client.head(path, HTTP_ORIGIN="http://evil.example")


# --- conditions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_caller_takes_for_granted(kept, settings, method):
    """RFC 9110 §13.2.2: 412 comes before 304 and before a range; the tag is compared strongly and beats the date."""
    first = fetch(kept, settings)
    tag, modified, past = first.headers["etag"], first.headers["last-modified"], "Thu, 01 Jan 1970 00:00:00 GMT"
    for failed in (
        {"If_Match": '"x"'},
        {"If_Match": f"W/{tag}"},
        {"If_Match": '"x"', "If_Unmodified_Since": modified},
        {"If_Match": '"x"', "If_None_Match": tag},
        {"If_Unmodified_Since": past},
        {"If_Unmodified_Since": past, "Range": "bytes=99999-"},
    ):
        got = fetch(kept, settings, method, **failed)
        assert got.status == 412, failed
        assert method == "HEAD" or code(got) == "PRECONDITION_FAILED"
    for held in (
        {"If_Match": tag},
        {"If_Match": f'"x", {tag}'},
        {"If_Match": "*"},
        {"If_Match": tag, "If_Unmodified_Since": past},
        {"If_Unmodified_Since": modified},
        {"If_Unmodified_Since": "no date"},
    ):
        assert fetch(kept, settings, method, **held).status == 200, held
    assert fetch(kept, settings, method, If_Match=tag, If_None_Match=tag).status == 304
    assert places.taken == 0


def test_a_part_is_not_taken_for_the_whole(sending):
    slot, upload, _promise = sending
    refused = request("PUT", upload.url, DATA[:5], {"Content-Range": f"bytes 0-4/{len(DATA)}"})
    assert (refused.status, code(refused)) == (400, "BAD_REQUEST")
    assert list(slot.iterdir()) == []
    assert request("PUT", upload.url, DATA).status == 201


def test_conditions_of_an_upload(sending):
    """They speak of what has arrived so far."""
    _slot, upload, _promise = sending
    assert request("PUT", upload.url, DATA, {"If-Match": "*"}).status == 412
    assert request("PUT", upload.url, DATA, {"If-None-Match": "*"}).status == 201
    for failed in (
        {"If-None-Match": "*"},
        {"If-Match": '"x"'},
        {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
    ):
        refused = request("PUT", upload.url, DATA[::-1], failed)
        assert (refused.status, code(refused)) == (412, "PRECONDITION_FAILED")
    assert request("PUT", upload.url, DATA[::-1], {"If-Match": f'"{sha256(DATA)}"'}).status == 201


# --- room -------------------------------------------------------------------------------------------------------------
def test_so_many_at_once(kept, sending, settings, monkeypatch):
    monkeypatch.setattr("apps.storage.api.room.WAIT_SECONDS", 0.01)
    settings.VISIONA = {**settings.VISIONA, "STORAGE_TRANSFERS": 1}
    held = Client().get(url_of(kept, settings).removeprefix(BASE))  # not read to its end
    for refused in (fetch(kept, settings), request("PUT", sending[1].url, DATA)):
        assert (refused.status, code(refused)) == (503, "OVERLOADED")
    assert b"".join(held.streaming_content) == DATA
    assert fetch(kept, settings).status == 200
    assert places.taken == 0


def test_every_answer_gives_its_place_back(kept, sending, settings):
    for headers in (
        {},
        {"Range": "bytes=0-1"},
        {"Range": "bytes=0-1,5-6"},
        {"Range": "bytes=99999-"},
        {"If_None_Match": "*"},
    ):
        fetch(kept, settings, **headers)
        fetch(kept, settings, "HEAD", **headers)
    request("PUT", sending[1].url, DATA)
    request("PUT", sending[1].url, DATA + b"x")
    assert places.taken == 0


def test_no_signature_in_the_log(kept, settings):
    url = url_of(kept, settings)
    line = logs._dumps(logs._mask_values(None, "", {"path": url.removeprefix(BASE), "exception": f"at {url}?x=1 end"}))
    assert json.loads(line) == {"path": "/storage/***", "exception": f"at {BASE}/storage/*** end"}


def test_a_store_says_where_it_is(local):
    assert repr(storage.local_store()) == f"<LocalStore {local.folder}>"
    assert isinstance(storage.store(), LocalStore)
