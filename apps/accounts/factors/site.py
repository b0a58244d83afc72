"""The admin's site: the password leads to the second step where there is one, and no page opens without it."""

from typing import Any

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.http import url_has_allowed_host_and_scheme
from unfold.forms import AuthenticationForm
from unfold.sites import UnfoldAdminSite

from apps.accounts.factors import checking, pages, steps
from apps.accounts.models import User


class SecondStepNeeded(Exception):
    """The password was right, and does not do alone."""

    def __init__(self, user: User) -> None:
        super().__init__()
        self.user = user


class PasswordForm(AuthenticationForm):  # type: ignore[misc]  # unfold is untyped
    """The first step. Django's view logs in whoever this form lets through."""

    def confirm_login_allowed(self, user: User) -> None:
        super().confirm_login_allowed(user)
        if checking.is_asked(user):
            raise SecondStepNeeded(user)


class StaffSite(UnfoldAdminSite):  # type: ignore[misc]  # unfold is untyped
    login_form = PasswordForm

    def has_permission(self, request: HttpRequest) -> bool:
        return bool(super().has_permission(request)) and steps.passed(request)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        try:
            answer: HttpResponse = super().login(request, extra_context)
        except SecondStepNeeded as needed:
            steps.begin(request, needed.user, _target(request))
            return redirect("admin:second_step")
        return answer

    def extra_urls(self) -> list[URLPattern]:
        return [
            path("second-step/", lambda request: pages.second_step(request, self), name="second_step"),
            path(
                "second-factor/", self.admin_view(lambda request: pages.own_factor(request, self)), name="second_factor"
            ),
        ]


def _target(request: HttpRequest) -> str:
    """The page that was wanted, if it is one of ours."""
    wanted = request.POST.get(REDIRECT_FIELD_NAME) or request.GET.get(REDIRECT_FIELD_NAME) or ""
    ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if ours else reverse("admin:index")
