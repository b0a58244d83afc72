"""What holds on every route: the envelope, request ids, methods, slashes, negotiation, headers, CORS."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog
from django.test import Client, RequestFactory

from apps.common.api.parsers import MAX_JSON_BYTES
from apps.common.http.middleware import believe_proxy
from apps.common.observability import log_line
from tests.apps.common.http.crashing_urls import FAILURES
from tests.apps.conftest import login_as

ORIGIN = "http://localhost:3000"


@pytest.mark.parametrize(
    "path", ["/nope", "/api/nope", "/api/auth/", "/api", "/api//auth/me", "/%00", "/api/auth/me/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH", "OPTIONS"])
def test_an_unknown_route_is_404_in_the_envelope(anonymous, method, path):
    answer = anonymous(method, path)
    assert (answer.status, answer.code) == (404, "NOT_FOUND")
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/auth/login", "POST, OPTIONS"),
        ("DELETE", "/api/auth/register", "POST, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("POST", "/api/schema", "GET, HEAD"),
        ("PUT", "/api/docs/", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("BREW", "/api/auth/login", "POST, OPTIONS"),
        ("TRACE", "/api/auth/login", "POST, OPTIONS"),
    ],
)
def test_a_wrong_method_is_405_with_allow(anonymous, method, path, allow):
    answer = anonymous(method, path)
    assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["Allow"] == allow


@pytest.mark.parametrize(
    "body", [b"{", b"", b"\xff\xfe", b'{"email": "\\ud800"}', b'{"a": NaN}', b"[" * 5000, b"{'a': 1}"]
)
def test_a_malformed_body_is_bad_request(anonymous, body, db):
    answer = anonymous("POST", "/api/auth/login", body)
    assert (answer.status, answer.code) == (400, "BAD_REQUEST" if body else "VALIDATION_ERROR")


def test_a_body_of_another_kind_is_415(anonymous, db):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"):
        answer = anonymous("POST", "/api/auth/login", b"email=a", content_type=kind)
        assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE"), kind


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=bogus"]
)
def test_json_may_come_with_parameters(anonymous, db, kind):
    assert anonymous("POST", "/api/auth/login", {}, content_type=kind).code == "VALIDATION_ERROR"


def test_a_body_over_the_limit_is_413(anonymous, db):
    exact = b'{"x": "' + b"a" * (MAX_JSON_BYTES - 9) + b'"}'
    assert len(exact) == MAX_JSON_BYTES
    assert anonymous("POST", "/api/auth/login", exact).code == "VALIDATION_ERROR"
    over = anonymous("POST", "/api/auth/login", exact + b" ")
    assert (over.status, over.code) == (413, "PAYLOAD_TOO_LARGE")


class Unread(io.BytesIO):
    """A body of which nobody may ask a byte, as one whose client still waits for `100 Continue`."""

    def read(self, *_size):
        raise AssertionError("the body was asked for")


@pytest.mark.parametrize("length", [MAX_JSON_BYTES + 1, 10**24])
def test_a_body_that_is_announced_too_large_is_413_unread(db, length):
    answer = Client().generic(
        "POST",
        "/api/auth/login",
        **{"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(length), "wsgi.input": Unread()},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.urls("tests.apps.common.http.crashing_urls")
@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("where", ["/api/test/", "/plain/"])
def test_every_failure_leaves_in_the_envelope_without_its_words(anonymous, where, kind):
    _, status, code = FAILURES[kind]
    answer = anonymous("GET", where + kind)
    assert (answer.status, answer.code) == (status, code)
    assert "secret" not in json.dumps(answer.json)
    assert ("Retry-After" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize("given", ["a", "A-z.0_9", "x" * 64])
def test_a_good_request_id_is_kept(anonymous, given):
    answer = anonymous("GET", "/nope", x_request_id=given)
    assert answer.headers["X-Request-ID"] == given
    assert answer.error["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "ä", "a\tb", "a,b"])
def test_any_other_is_replaced(anonymous, given):
    answer = anonymous("GET", "/nope", x_request_id=given)
    assert re.fullmatch(r"req_[0-9a-f]{20}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("path", ["/healthz?live=1", "/static/system/docs.js", "/api/docs", "/admin/login/", "/nope"])
def test_every_answer_has_an_id_and_security_headers(anonymous, db, path):
    response = Client().get(path)
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Content-Security-Policy" in response.headers
    assert response.headers["Referrer-Policy"] == "same-origin"
    if response.streaming:
        b"".join(response)
        response.close()


@pytest.mark.parametrize("path", ["/api/auth/me/", "/healthz/", "/api/schema/", "/api/auth/sessions/"])
def test_a_trailing_slash_is_served_alike_without_a_redirect(alice_api, path):
    assert alice_api("GET", path).json.keys() == alice_api("GET", path[:-1]).json.keys()
    assert alice_api("GET", path).status == 200


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml", "application/json; indent=8", "nonsense", "*/*;q=0"]
)
def test_it_answers_json_whatever_accept_says(alice_api, accept):
    answer = alice_api("GET", "/api/auth/me", accept=accept)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert b"\n" not in answer.response.content


def test_format_is_no_parameter(alice_api):
    assert alice_api("GET", "/api/auth/me?format=api").error["details"] == {
        "format": ["This route has no such query parameter."]
    }


def test_the_order_of_refusals(anonymous, alice_api):
    missing = "/api/auth/sessions/00000000-0000-0000-0000-000000000000"
    assert anonymous("PUT", f"{missing}?bad=1", b"{").status == 401
    assert alice_api("PUT", f"{missing}?bad=1", b"{").status == 405
    assert alice_api("DELETE", f"{missing}?bad=1", b"{").status == 404
    mine = alice_api("GET", "/api/auth/sessions").data[0]["id"]
    assert alice_api("DELETE", f"/api/auth/sessions/{mine}?bad=1").status == 400
    assert alice_api("PATCH", "/api/auth/me?bad=1", b"{").code == "VALIDATION_ERROR"


def test_head_is_get_without_the_body(alice_api):
    get, head = alice_api("GET", "/api/auth/me"), alice_api("HEAD", "/api/auth/me")
    assert head.status == 200
    assert head.response.content == b""
    assert head.headers["Content-Length"] == str(len(get.response.content))


def test_options_tells_the_methods(alice_api):
    answer = alice_api("OPTIONS", "/api/auth/me")
    assert (answer.status, answer.data) == (200, None)
    assert answer.headers["Allow"] == "GET, PATCH, DELETE, HEAD, OPTIONS"


def test_a_strange_host_is_refused_in_the_envelope(anonymous, settings):
    settings.ALLOWED_HOSTS = ["good.example"]
    answer = anonymous("GET", "/api/schema", host="evil.example")
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")


class TestCors:
    def test_a_listed_origin_may_read(self, alice_api):
        answer = alice_api("GET", "/api/auth/me", origin=ORIGIN)
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
        assert exposed == {
            "X-Request-ID", "Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "ETag",
            "Content-Range", "Accept-Ranges",
        }  # fmt: skip
        assert "Access-Control-Allow-Credentials" not in answer.headers

    @pytest.mark.parametrize("origin", ["http://localhost:5173", "https://127.0.0.1", "http://[::1]:8000"])
    def test_any_local_page_may_in_development_alone(self, anonymous, settings, origin):
        assert anonymous("GET", "/api/auth/me", origin=origin).headers["Access-Control-Allow-Origin"] == origin
        settings.VISIONA = {**settings.VISIONA, "ENV": "production"}
        assert "Access-Control-Allow-Origin" not in anonymous("GET", "/api/auth/me", origin=origin).headers

    @pytest.mark.parametrize("name", ["PUBLIC_URL", "TUNNEL_PUBLIC_URL"])
    def test_the_sites_own_pages_may(self, anonymous, settings, name):
        settings.VISIONA = {**settings.VISIONA, "ENV": "production", name: "https://own.example/below"}
        answer = anonymous("GET", "/api/auth/me", origin="https://own.example")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://own.example"

    def test_errors_may_be_read_too(self, anonymous):
        answer = anonymous("GET", "/api/auth/me", origin=ORIGIN)
        assert answer.status == 401
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN

    @pytest.mark.parametrize(
        "origin",
        [
            "http://evil.example",
            "null",
            "http://localhost:3000.evil.example",
            "http://localhost:3000/path",
            "http://x@localhost",
        ],
    )
    def test_no_other_origin_may(self, anonymous, origin):
        for method in ("GET", "OPTIONS"):
            answer = anonymous(method, "/api/auth/me", origin=origin, access_control_request_method="GET")
            assert "Access-Control-Allow-Origin" not in answer.headers

    @pytest.mark.parametrize(
        "path", ["/api/auth/me", "/api/devices/x/proxy/any", "/api/cameras/1", "/storage/x", "/ws/x", "/d/x"]
    )
    def test_a_preflight_is_answered_without_a_credential(self, anonymous, path):
        response = Client().options(
            path,
            HTTP_ORIGIN=ORIGIN,
            HTTP_ACCESS_CONTROL_REQUEST_METHOD="PUT",
            HTTP_ACCESS_CONTROL_REQUEST_HEADERS="authorization, x-device-id, content-range",  # a box's way says these
        )
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "PUT" in response.headers["Access-Control-Allow-Methods"]
        allowed = response.headers["Access-Control-Allow-Headers"]
        assert all(name in allowed for name in ("authorization", "x-device-id", "content-range"))
        assert response.headers["X-Request-ID"]

    def test_other_pages_are_not_shared(self, db):
        assert "Access-Control-Allow-Origin" not in Client().get("/admin/login/", HTTP_ORIGIN=ORIGIN).headers


class TestTrustedProxies:
    @pytest.mark.parametrize(
        ("trusted", "peer", "forwarded", "client"),
        [
            ((), "10.0.0.1", "1.2.3.4", "10.0.0.1"),
            (("10.0.0.0/8",), "192.0.2.9", "1.2.3.4", "192.0.2.9"),
            (("10.0.0.0/8",), "10.0.0.1", "1.2.3.4", "1.2.3.4"),
            (("10.0.0.0/8",), "10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
            (("10.0.0.0/8",), "10.0.0.1", "6.6.6.6, nonsense", "10.0.0.1"),
            (("10.0.0.0/8",), "10.0.0.1", "", "10.0.0.1"),
            (("::1",), "::1", "2001:db8::7", "2001:db8::7"),
        ],
    )
    def test_the_client_is_the_last_address_that_no_trusted_proxy_wrote(
        self, settings, trusted, peer, forwarded, client
    ):
        settings.VISIONA = {**settings.VISIONA, "TRUSTED_PROXIES": trusted}
        request = RequestFactory().get("/", REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded)
        believe_proxy(request)
        assert request.client_address == client

    def test_links_are_as_the_client_sees_them(self, settings, alice, alice_api):
        settings.VISIONA = {**settings.VISIONA, "TRUSTED_PROXIES": ("127.0.0.1",)}
        settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, "cloud.example"]
        login_as(alice)
        page = alice_api(
            "GET", "/api/auth/sessions?limit=1", x_forwarded_proto="https", x_forwarded_host="cloud.example"
        )
        assert page.json["meta"]["next"].startswith("https://cloud.example/api/auth/sessions?")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What would stand on stderr."""
    root = logging.getLogger()
    real = next(h for h in root.handlers if isinstance(h.formatter, structlog.stdlib.ProcessorFormatter))
    sink = io.StringIO()
    copy = logging.StreamHandler(sink)
    copy.setFormatter(real.formatter)
    root.addHandler(copy)
    monkeypatch.setattr(log_line, "write", lambda line: sink.write(line.decode()))
    yield sink
    root.removeHandler(copy)


def test_no_log_line_holds_a_query_or_a_token(alice_api, log):
    token = alice_api.token
    alice_api("GET", f"/api/auth/me?access_token={token}&ticket=hush", x_request_id="the-id")
    alice_api("GET", f"/nope/{token}?ticket=hush")
    logging.getLogger("urllib3").error("GET http://localhost/x?ticket=hush with %s", token)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["path"], line["status"]) for line in lines[:2]] == [("/api/auth/me", 400), ("/nope/vAu_***", 404)]
    assert lines[0]["request_id"] == "the-id"
    assert lines[2]["event"] == "GET http://localhost/x with vAu_***"
    assert "hush" not in log.getvalue()
    assert token not in log.getvalue()


@pytest.mark.urls("tests.apps.common.http.crashing_urls")
def test_a_crash_is_logged_once_with_its_trace_and_the_id(anonymous, log):
    anonymous("GET", "/plain/crash", x_request_id="the-id")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["request_failed", "request"]
    assert {line["request_id"] for line in lines} == {"the-id"}
    assert "RuntimeError: secret detail" in lines[0]["exception"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/", 405, "METHOD_NOT_ALLOWED"), ("/api/docs/", 405, "METHOD_NOT_ALLOWED"), ("/favicon.ico", 403, "FORBIDDEN")],
)
def test_a_post_without_a_csrf_token_is_refused_in_the_envelope(path, status, code):
    answer = Client(enforce_csrf_checks=True).post(path)
    assert answer.status_code == status
    assert json.loads(answer.content)["error"]["code"] == code


@pytest.mark.django_db
def test_the_admins_own_csrf_refusal_is_a_page():
    answer = Client(enforce_csrf_checks=True).post("/admin/login/")
    assert answer.status_code == 403
    assert answer.headers["Content-Type"].startswith("text/html")


def test_static_files_are_not_opened_to_other_origins():
    answer = Client().head("/static/console/console.css", headers={"Origin": "https://elsewhere.example"})
    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
