"""The system group: health, info, metrics, the schema and its page; no migration is missing."""

import io
import re

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from apps.system import checks
from apps.tunnels import registry
from tunnel.contract import DEV_INTERNAL_SECRET, ERROR_STATUS


class TestHealthz:
    def test_tells_that_both_are_there(self, anonymous, db):
        answer = anonymous("GET", "/healthz")
        assert (answer.status, answer.json) == (200, {"status": "ok", "checks": {"postgresql": "ok", "redis": "ok"}})

    @pytest.mark.parametrize(
        ("down", "code"),
        [
            ({"postgresql"}, "DATABASE_UNAVAILABLE"),
            ({"redis"}, "CACHE_UNAVAILABLE"),
            ({"postgresql", "redis"}, "DATABASE_UNAVAILABLE"),
        ],
    )
    def test_tells_which_is_down(self, anonymous, monkeypatch, down, code):
        found = {name: "down" if name in down else "ok" for name in ("postgresql", "redis")}
        monkeypatch.setattr(checks, "run", lambda: found)
        answer = anonymous("GET", "/healthz")
        assert (answer.status, answer.code) == (503, code)
        assert answer.error["details"] == {"checks": found}
        assert answer.headers["Retry-After"] == "1"

    def test_liveness_asks_nobody(self, anonymous, monkeypatch):
        monkeypatch.setattr(checks, "run", lambda: pytest.fail("asked"))
        assert anonymous("GET", "/healthz?live=1").json == {"status": "ok", "checks": {}}

    def test_is_not_ready_while_the_process_ends(self, client, monkeypatch):
        """The server's word in the lame-duck time (cloud.server.stopping); alive it is, nonetheless."""
        monkeypatch.setattr(checks, "run", lambda: pytest.fail("asked"))
        ending = {"visiona.stopping": True}
        answer = client.get("/healthz", **ending)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "OVERLOADED")
        assert client.get("/healthz?live=1", **ending).json() == {"status": "ok", "checks": {}}

    @pytest.mark.parametrize("query", ["live=yes", "live=", "dead=1", "live=1&live=1"])
    def test_a_bad_query_is_refused(self, anonymous, query):
        assert anonymous("GET", f"/healthz?{query}").code == "VALIDATION_ERROR"

    def test_needs_no_valid_credential(self, anonymous, db):
        anonymous.token = "vAu_" + "0" * 32
        assert anonymous("GET", "/healthz").status == 200


class TestHealth:
    def test_nobody_is_there(self, alice_api):
        assert alice_api("GET", "/api/system/health").data == {
            "daemons_alive": 0, "daemons_draining": 0, "tunnels_online": 0, "own_devices_online": 0,
            "redis_maxmemory_policy": "noeviction",
        }  # fmt: skip

    def test_counts_what_the_registry_knows(self, alice, alice_api, bob_api, monkeypatch):
        class Node:
            sessions = 3
            draining = True

        monkeypatch.setattr(registry, "nodes", lambda: [Node(), Node()])
        monkeypatch.setattr(registry, "lookup_user", lambda user: {"d": None} if user == str(alice.pk) else {})
        expected = {"daemons_alive": 2, "daemons_draining": 2, "tunnels_online": 6, "own_devices_online": 1}
        assert expected.items() <= alice_api("GET", "/api/system/health").data.items()
        assert bob_api("GET", "/api/system/health").data["own_devices_online"] == 0


def test_info_tells_the_build(alice_api):
    data = alice_api("GET", "/api/system/info").data
    assert set(data) == {"version", "commit", "built_at", "python", "migrations", "features"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", data["version"])
    assert data["python"].startswith("3.")
    assert re.match(r"\d{4}_", data["migrations"]["accounts"])
    assert data["features"] == {
        "registration": True,
        "static_user": False,
        "demo_data": data["features"]["demo_data"],
        "oidc": False,
        "mail": True,
        "converter": False,
        "s3": False,
    }


def test_info_tells_what_is_set_up(alice_api, settings):
    values = {
        "ENV": "production",
        "OIDC_ISSUER": "https://id.example",
        "CONVERTER_URL": "https://converter.example",
        "S3_BUCKET": "models",
    }
    settings.VISIONA = {**settings.VISIONA, **values}
    features = alice_api("GET", "/api/system/info").data["features"]
    assert [features[name] for name in ("oidc", "mail", "converter", "s3")] == [True, False, True, True]
    settings.VISIONA = {**settings.VISIONA, "EMAIL_HOST": "smtp.example"}
    assert alice_api("GET", "/api/system/info").data["features"]["mail"] is True


class TestMetrics:
    def get(self, header: str | None) -> tuple[int, str]:
        extra = {"HTTP_AUTHORIZATION": header} if header is not None else {}
        response = Client().get("/internal/metrics", **extra)
        return response.status_code, response.content.decode()

    def test_counts_by_route_pattern(self, alice_api):
        alice_api("DELETE", "/api/auth/sessions/not-an-id")
        status, text = self.get(f"Bearer {DEV_INTERNAL_SECRET}")
        assert status == 200
        assert re.search(r'requests_total\{method="DELETE",route="api/auth/sessions/<str:id>",status="404"\} \d', text)
        assert "not-an-id" not in text

    @pytest.mark.parametrize("header", [None, "", "Bearer wrong", "Bearer", f"Basic {DEV_INTERNAL_SECRET}"])
    def test_asks_for_the_internal_secret(self, header):
        status, text = self.get(header)
        assert status == 401
        assert '"code": "UNAUTHENTICATED"' in text

    def test_a_login_does_not_open_it(self, alice_api):
        assert alice_api("GET", "/internal/metrics").status == 401


class TestSchema:
    @pytest.fixture
    def schema(self, anonymous) -> dict:
        return anonymous("GET", "/api/schema/").json

    def test_is_openapi_3_1(self, schema):
        assert schema["openapi"] == "3.1.0"
        assert schema["components"]["securitySchemes"]["login"]["scheme"] == "bearer"

    def test_is_made_without_a_warning(self):
        errors = io.StringIO()
        call_command("spectacular", "--validate", "--fail-on-warn", stdout=io.StringIO(), stderr=errors)

    def test_names_every_route_of_the_control_plane(self, schema):
        def routes(patterns, prefix=""):
            for each in patterns:
                if isinstance(each, URLResolver):
                    yield from routes(each.url_patterns, prefix + str(each.pattern))
                elif isinstance(each, URLPattern):
                    yield "/" + re.sub(r"<\w+:(\w+)>", r"{\1}", prefix + str(each.pattern))

        own = {"/api/schema", "/api/docs"}
        described = ("/api/auth", "/api/system", "/api/pairing", "/healthz")
        wanted = {route for route in routes(get_resolver().url_patterns) if route.startswith(described)} - own
        assert len(wanted) > 10
        assert wanted <= set(schema["paths"])

    def test_each_operation_declares_its_errors_in_the_envelope(self, schema):
        for path, item in schema["paths"].items():
            if path.startswith(("/api/auth", "/api/system", "/healthz")):
                for method, operation in item.items():
                    where = f"{method} {path}"
                    assert {"400", "429", "500", "503"} <= set(operation["responses"]), where
                    assert ("401" in operation["responses"]) or not operation.get("security"), where
                    absent = "{" in path or path.endswith("sessions") or "/oidc/" in path  # no provider
                    pages = ("get /api/auth/identities", "get /api/auth/passkeys")
                    absent |= where in (*pages, "post /api/auth/identities/link")
                    assert ("404" in operation["responses"]) is absent, where
                    assert ("413" in operation["responses"]) is ("requestBody" in operation), where
                    assert operation["summary" if "summary" in operation else "description"], where
                    self._errors(operation, where)

    def _errors(self, operation: dict, where: str) -> None:
        for status, response in operation["responses"].items():
            assert "X-Request-ID" in response["headers"], where
            if int(status) >= 400:
                error = response["content"]["application/json"]["schema"]["properties"]["error"]
                codes = set(error["properties"]["code"]["enum"])
                if status == "409":
                    codes -= {"QUOTA_EXCEEDED"}  # which has two
                assert {ERROR_STATUS[code] for code in codes} == {int(status)}, where

    def test_details_map_a_name_to_strings(self, schema):
        """For each status of each operation; `checks` of `/healthz` is the one thing of another form."""
        seen = 0
        for item in schema["paths"].values():
            for operation in item.values():
                for answer in operation["responses"].values():
                    held = answer.get("content", {}).get("application/json", {}).get("schema", {}).get("properties", {})
                    if "error" in held:
                        details = held["error"]["properties"]["details"]
                        assert details["additionalProperties"] == {"type": "array", "items": {"type": "string"}}
                        assert set(details.get("properties", {})) <= {"checks"}
                        seen += 1
        assert seen > 400

    def test_each_operation_has_a_line_beside_its_path(self, schema):
        """One short sentence, which the documents page shows before anything is opened."""
        verbs = {"get", "post", "put", "patch", "delete"}
        for path, item in schema["paths"].items():
            for verb in verbs & set(item):
                summary = item[verb].get("summary", "")
                assert summary, (path, verb)
                assert "\n" not in summary, (path, verb)
                assert len(summary) <= 160, (path, verb, summary)
        assert schema["paths"]["/api/clusters/{id}"]["get"]["summary"] == "One cluster"
        assert schema["paths"]["/api/devices/scan"]["get"]["summary"] == "Scan for accelerators"  # its own, declared

    def test_lists_declare_their_query(self, schema):
        names = {each["name"]: each for each in schema["paths"]["/api/auth/sessions"]["get"]["parameters"]}
        assert set(names) == {"limit", "cursor", "ordering"}
        assert names["limit"]["schema"] | {"minimum": 1, "maximum": 200, "default": 50} == names["limit"]["schema"]

    def test_the_page_needs_no_other_host_and_no_inline_script(self, db):
        response = Client().get("/api/docs/")
        page = response.content.decode()
        assert not re.search(r"https?://", page)
        assert not re.search(r"<script(?![^>]*\bsrc=)", page)
        for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
            found = Client().get(asset)
            assert found.status_code == 200, asset
            found.close()


def test_no_migration_is_missing(db):
    call_command("makemigrations", "--check", "--dry-run", stdout=io.StringIO())
