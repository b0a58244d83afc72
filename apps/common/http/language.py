"""The language of messages, chosen by `Accept-Language` for each request (api.md, "Conventions"); codes stay."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import translation
from django.utils.cache import patch_vary_headers

from tunnel.contract import language_of


class LanguageMiddleware:
    """Messages made within the request are in its language.

    Django's own LocaleMiddleware is not used: it takes any Chinese for Traditional, and a cookie before the header.
    An answer that a box gave is passed on as it is.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        language = language_of(request.META.get("HTTP_ACCEPT_LANGUAGE", ""), settings.LANGUAGE_CODE)
        with translation.override(language):
            response = self.get_response(request)
        if response.status_code >= 400 and not response.streaming:
            response.headers.setdefault("Content-Language", language)
            patch_vary_headers(response, ["Accept-Language"])
        return response
