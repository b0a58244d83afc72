"""Finding the view of a path."""

from typing import Any, Final

from django.urls import ResolverMatch, URLResolver
from django.urls.resolvers import RoutePattern

_MOST: Final = 1024
"""Cached paths at most. There are as many as routes without a variable part, unless a pattern matches several."""


class CachedRoutes(URLResolver):
    """Routes tried one after the other, as Django does; paths of routes without a variable part are looked up.

    It stands as the only one at the root: `urlpatterns = [CachedRoutes(routes)]`.
    """

    def __init__(self, routes: list[Any]) -> None:
        super().__init__(RoutePattern("", is_endpoint=False), routes)
        self._kept: dict[str, ResolverMatch] = {}

    def resolve(self, path: str) -> ResolverMatch:
        """The view of a path without its leading slash. Raises Resolver404."""
        found = self._kept.get(path)
        if found is None:
            found = super().resolve(path)
            if not found.args and not found.kwargs and len(self._kept) < _MOST:
                self._kept[path] = found  # Django copies the match for each request
        return found
