"""Messages in Traditional Chinese: chosen by the request, and none missing."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import translation
from rest_framework import serializers
from rest_framework.test import APIClient

from apps.common.errors import DEFAULT_MESSAGES
from tunnel.contract import ERROR_STATUS, language_of
from tunnel.http.errors import ProxyError, error_body

ROOT = Path(__file__).resolve().parents[4]
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# Machines talk to machines here, under the internal secret; or an agent reads it, which names no language.
ENGLISH_ALONE = ("apps/proxy/internal/", "apps/system/views.py", "apps/devices/admission")


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh-Hant", "zh-hant"),
        ("zh-TW", "zh-hant"),
        ("zh-HK,en;q=0.5", "zh-hant"),
        ("zh-Hant-TW", "zh-hant"),
        ("en, zh-TW", "en"),
        ("en;q=0.5, zh-TW;q=0.9", "zh-hant"),
        ("zh-TW;q=0, en;q=0.1", "en"),
        ("zh-CN, zh;q=0.9", "en"),
        ("fr, de", "en"),
        ("zh-TW;q=high", "en"),
        ("zh-TW;q=nan", "en"),
        (";;;,,,", "en"),
        ("english", "en"),
    ],
)
def test_the_language_that_is_asked_for(accepted: str, language: str) -> None:
    assert language_of(accepted) == language


def test_the_default_counts_where_nothing_usable_is_asked_for() -> None:
    assert language_of("fr", "zh-hant") == "zh-hant"
    assert language_of("en-GB", "zh-hant") == "en"


def test_a_refusal_is_in_the_language_of_the_request() -> None:
    client = APIClient()
    for accepted, chinese in (("zh-TW", True), ("en", False), ("zh-CN", False)):
        answer = client.get("/api/auth/me", headers={"Accept-Language": accepted})
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert error["code"] == "UNAUTHENTICATED"
        assert bool(CHINESE.search(error["message"])) is chinese
        assert "Accept-Language" in answer["Vary"]
        assert answer["Content-Language"] == ("zh-hant" if chinese else "en")


def test_each_bad_field_is_told_in_chinese() -> None:
    answer = APIClient().post(
        "/api/auth/register", {"email": "no", "password": "x"}, format="json", headers={"Accept-Language": "zh-Hant"}
    )
    details = answer.json()["error"]["details"]
    assert set(details) >= {"email", "password"}
    assert all(CHINESE.search(text) for texts in details.values() for text in texts), details


def test_every_code_has_both_languages() -> None:
    assert set(DEFAULT_MESSAGES) == set(ERROR_STATUS)
    for code, message in DEFAULT_MESSAGES.items():
        with translation.override("zh-hant"):
            assert CHINESE.search(str(message)), code
        with translation.override("en"):
            assert not CHINESE.search(str(message)), code


@pytest.mark.parametrize("code", sorted(ERROR_STATUS))
def test_the_daemon_has_chinese_for_what_it_tells(code: str) -> None:
    body = error_body(ProxyError(code, "detail"), "req_1", "zh-hant").decode()
    assert CHINESE.search(body)


def test_the_catalogue_is_complete_and_compiled() -> None:
    spec = importlib.util.spec_from_file_location("messages", ROOT / ".ci" / "messages.py")
    assert spec is not None
    assert spec.loader is not None
    messages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(messages)
    assert messages.faults() == []


def test_no_message_is_left_unmarked() -> None:
    assert list(_unmarked()) == []


def test_the_fields_own_messages_are_in_chinese() -> None:
    seen = 0
    with translation.override("zh-hant"):
        for form in _serializers():
            for name, field in form().fields.items():
                if field.read_only:
                    continue
                for key, text in field.error_messages.items():
                    seen += 1
                    assert CHINESE.search(str(text)), f"{form.__name__}.{name}: {key}: {text}"
    assert seen > 100


def _unmarked() -> Iterator[str]:
    """Literals that go to a person and pass no translation."""
    for path in sorted((ROOT / "apps").rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(ENGLISH_ALONE):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield from (f"{place}:{text.lineno}" for text in _texts(node) if _is_sentence(text))


def _texts(call: ast.Call) -> list[ast.expr]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = [k.value for k in call.keywords if k.arg != "headers"]
    if name == "DomainError":
        return [*call.args[1:], *_inside(keywords)]
    if name == "invalid":
        return keywords
    if name in ("ValidationError", "DaemonUnavailable"):
        return _inside(call.args)
    return []


def _inside(values: list[ast.expr]) -> list[ast.expr]:
    found: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Dict):
            found += _inside(value.values)
        elif isinstance(value, ast.List | ast.Tuple):
            found += _inside(value.elts)
        else:
            found.append(value)
    return found


def _is_sentence(node: ast.expr) -> bool:
    if isinstance(node, ast.JoinedStr):
        return True
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value


def _serializers() -> set[type[serializers.Serializer[Any]]]:
    """Every body and query that our own API reads: subclasses found once the URL map is loaded."""
    list(_patterns(get_resolver().url_patterns))
    found: set[type[serializers.Serializer[Any]]] = set()
    left = [serializers.Serializer]
    while left:
        for child in left.pop().__subclasses__():
            if child not in found:
                found.add(child)
                left.append(child)
    return {form for form in found if form.__module__.startswith("apps.") and not hasattr(form, "Meta")}


def _patterns(entries: list[URLPattern | URLResolver]) -> Iterator[URLPattern]:
    for entry in entries:
        if isinstance(entry, URLResolver):
            yield from _patterns(entry.url_patterns)
        else:
            yield entry
