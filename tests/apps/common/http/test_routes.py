"""Paths are found as Django finds them, those without a variable part by looking them up."""

import pytest
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, ResolverMatch, URLResolver, get_resolver, include, path, re_path
from django.urls.resolvers import RegexPattern, RoutePattern

from apps.common.http import routes
from apps.common.http.routes import CachedRoutes


def view(request: HttpRequest, **kwargs: str) -> HttpResponse:
    return HttpResponse()


def test_the_admin_is_found_without_its_slash(client) -> None:
    answer = client.get("/admin")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


PATTERNS = [
    path("one", view, name="one"),
    path("things/", include([path("all", view, {"extra": "1"}), path("<str:id>", view, name="thing")])),
    re_path(r"^any/.*$", view),
]
PATHS = ["one", "things/all", "things/7", "things/8", "any/a", "any/b", "things/all"]


def facts(match: ResolverMatch) -> tuple[object, ...]:
    return match.func, match.args, match.kwargs, match.url_name, match.route, match.captured_kwargs, match.extra_kwargs


def test_they_are_what_django_finds() -> None:
    own = URLResolver(RegexPattern(r"^/"), [CachedRoutes(PATTERNS)])
    django = URLResolver(RegexPattern(r"^/"), [URLResolver(RoutePattern("", is_endpoint=False), PATTERNS)])
    for _ in range(3):
        for each in PATHS:
            assert facts(own.resolve("/" + each)) == facts(django.resolve("/" + each))
        for unknown in ("", "one/", "things/", "things/7/8"):
            with pytest.raises(Resolver404):
                own.resolve("/" + unknown)


def test_what_a_view_does_to_its_match_is_not_kept() -> None:
    own = URLResolver(RegexPattern(r"^/"), [CachedRoutes(PATTERNS)])
    own.resolve("/one").kwargs["mine"] = "1"
    assert own.resolve("/one").kwargs == {}
    assert own.resolve("/one") is not own.resolve("/one")


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_MOST", 2)
    kept = CachedRoutes(PATTERNS)
    for each in PATHS:
        kept.resolve(each)
    assert set(kept._kept) == {"one", "any/a"}
    assert kept.resolve("any/b").func is view


def test_the_project_uses_them() -> None:
    (root,) = get_resolver("cloud.urls").url_patterns
    assert isinstance(root, CachedRoutes)
