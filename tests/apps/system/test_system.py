"""The system group: health, info, schema, docs, metrics."""


def test_healthz(anonymous, db):
    answer = anonymous("GET", "/healthz")
    assert answer.json == {"status": "ok", "checks": {"postgresql": "ok", "redis": "ok"}}


def test_schema(anonymous):
    answer = anonymous("GET", "/api/schema/")
    assert answer.json["openapi"].startswith("3.1")
    assert "/api/auth/login" in answer.json["paths"]


def test_health(alice_api):
    assert alice_api("GET", "/api/system/health/").data["own_devices_online"] == 0


def test_info(alice_api):
    assert alice_api("GET", "/api/system/info").data["version"]
