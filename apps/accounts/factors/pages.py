"""Two pages of the admin: the second step of a login, and one's own second factor."""

import datetime as dt
from typing import Any, cast

from django import forms
from django.contrib.admin.sites import AdminSite
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextInputWidget

from apps.accounts.credentials import check_password
from apps.accounts.factors import checking, owner, steps
from apps.accounts.factors.owner import Offer
from apps.accounts.models import User
from apps.common.actor import Actor
from apps.common.errors import DomainError


class CodeForm(forms.Form):
    code = forms.CharField(
        label=gettext_lazy("Code"),
        max_length=64,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "one-time-code", "autofocus": ""}),
    )


class ProvedForm(CodeForm):
    password = forms.CharField(
        label=gettext_lazy("Password"),
        max_length=1024,
        strip=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "current-password"}),
    )
    field_order = ("password", "code")


@never_cache
@csrf_protect
@sensitive_post_parameters()
def second_step(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """After the right password: the code; where staff must have a factor and this one has none, they set it up."""
    at = steps.pending(request)
    if at is None or not checking.is_asked(at.user):
        return redirect("admin:login")
    here = Actor.of(request)
    actor = Actor(str(at.user.pk), at.user.email, here.address, here.request_id)
    factor, now = checking.factor_of(at.user.pk), timezone.now()
    form, codes = CodeForm(request.POST or None), None
    if request.method == "POST" and form.is_valid():
        code = form.cleaned_data["code"]
        try:
            if factor is None:
                factor, codes = owner.confirm(actor=actor, user=at.user, code=code, now=now)
            else:
                checking.check(actor=actor, user=at.user, code=code, now=now)
        except DomainError as error:
            _say(form, error)
        else:
            steps.enter(request, at.user, factor, now)
            return redirect(at.target) if codes is None else _show_codes(request, site, codes, at.target)
    if factor is not None:
        lead = _("Type the code that your authenticator shows now, or one of your recovery codes.")
        return _page(request, site, form, lead=lead, buttons=[("", _("Log in"))])
    lead = _("Staff need a second factor here: scan this with an authenticator app, then type the code that it shows.")
    offer = _offer(request, at.user)
    return _page(request, site, form, lead=lead, offer=offer, buttons=[("", _("Switch on and log in"))])


@never_cache
@csrf_protect
@sensitive_post_parameters()
def own_factor(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """One's own second factor: switch it on or off, get new recovery codes; each on the password and a code."""
    user, now = cast("User", request.user), timezone.now()
    form = ProvedForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            codes = _act(request, user, now, **form.cleaned_data)
        except DomainError as error:
            _say(form, error)
        else:
            index = reverse("admin:index")
            return redirect("admin:second_factor") if codes is None else _show_codes(request, site, codes, index)
    factor = checking.factor_of(user.pk)
    back = {"href": reverse("admin:index"), "label": _("Back to the admin")}
    if factor is None:
        lead = _("No second factor is on. Scan this with an authenticator app, then type the code that it shows.")
        offer, buttons = _offer(request, user), [("on", _("Switch on"))]
        return _page(request, site, form, lead=lead, offer=offer, buttons=buttons, link=back)
    lead = _("Your second factor is on; %(count)d recovery codes are left.") % {"count": len(factor.recovery_hashes)}
    buttons = [("renew", _("New recovery codes"))]
    if not checking.is_required(user):
        buttons.append(("off", _("Switch off")))
    return _page(request, site, form, lead=lead, buttons=buttons, link=back)


def _act(request: HttpRequest, user: User, now: dt.datetime, *, password: str, code: str) -> list[str] | None:
    """What the button says; new recovery codes where there are any."""
    actor, wanted = Actor.of(request), request.POST.get("act")
    if wanted == "on":
        check_password(actor=actor, user=user, password=password, now=now)
        factor, codes = owner.confirm(actor=actor, user=user, code=code, now=now)
        steps.mark(request, factor)
        return codes
    if wanted == "renew":
        return owner.renew(actor=actor, user=user, password=password, code=code, now=now)
    if wanted == "off" and not checking.is_required(user):
        owner.switch_off(actor=actor, user=user, password=password, code=code, now=now)
        steps.mark(request, None)
    return None


def _offer(request: HttpRequest, user: User) -> Offer:
    """A new secret each time the page is opened; after a wrong code the one that was shown."""
    known = owner.offered(user=user) if request.method == "POST" else None
    return known or owner.offer(user=user)


def _say(form: forms.Form, error: DomainError) -> None:
    """A refusal that can be mended in the form; others, of which there are too many tries, end the page."""
    if error.code not in ("INVALID_CREDENTIALS", "INVALID_STATE"):
        raise error
    form.add_error(None, error.message)


def _show_codes(request: HttpRequest, site: AdminSite, codes: list[str], target: str) -> HttpResponse:
    lead = _(
        "Keep these recovery codes where you find them without your authenticator: each opens your account once. "
        "They are not shown again."
    )
    return _page(request, site, None, lead=lead, codes=codes, link={"href": target, "label": _("I have kept them")})


def _page(request: HttpRequest, site: AdminSite, form: forms.Form | None, **more: Any) -> HttpResponse:
    context = {**site.each_context(request), "title": _("Second factor"), "form": form, **more}
    return TemplateResponse(request, "accounts/factor/page.html", context)
