"""Two pages of the admin: the second step of a login, and one's own second factor."""

import datetime as dt
import json
import uuid
from typing import Any, Final, cast

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
from apps.accounts.factors import checking, owner, passkeys, steps, webauthn
from apps.accounts.factors.checking import Proof
from apps.accounts.factors.owner import Offer
from apps.accounts.factors.webauthn import Answer, Purpose
from apps.accounts.models import SecondFactor, User
from apps.common.actor import Actor
from apps.common.errors import DomainError

MOST_CHARACTERS: Final = 32_768
"""Of what a browser's passkey tells, as JSON."""


class CodeForm(forms.Form):
    """A typed code, or what the browser's passkey signed (`static/accounts/factor.js` fills it in)."""

    code = forms.CharField(
        label=gettext_lazy("Code"),
        max_length=64,
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "one-time-code", "autofocus": ""}),
    )
    passkey = forms.CharField(max_length=MOST_CHARACTERS, required=False, widget=forms.HiddenInput())


class PasskeyForm(forms.Form):
    passkey = forms.CharField(max_length=MOST_CHARACTERS, widget=forms.HiddenInput())


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
    """After the right password: the code or the passkey; where staff must have a factor and this one has none, they
    set it up."""
    at = steps.pending(request)
    if at is None or not checking.is_asked(at.user):
        return redirect("admin:login")
    here = Actor.of(request)
    actor = Actor(str(at.user.pk), at.user.email, here.address, here.request_id)
    factor, now = checking.factor_of(at.user.pk), timezone.now()
    form, codes = CodeForm(request.POST or None), list[str]()
    if request.method == "POST" and form.is_valid():
        try:
            if factor is not None:
                checking.check(actor=actor, user=at.user, proof=_proof(form, "admin"), now=now)
            elif request.POST.get("act") == "passkey":
                factor, codes = _register(actor, at.user, form.cleaned_data["passkey"], now)
            else:
                factor, codes = owner.confirm(actor=actor, user=at.user, code=form.cleaned_data["code"], now=now)
        except DomainError as error:
            _say(form, error)
        else:
            steps.enter(request, at.user, factor, now)
            return redirect(at.target) if not codes else _show_codes(request, site, codes, at.target)
    if factor is not None:
        lead = _("Type the code that your authenticator shows now, or one of your recovery codes.")
        ask = _asked("admin", at.user, factor)
        return _page(request, site, form, lead=lead, get=ask, buttons=[("", _("Log in"))])
    lead = _("Staff need a second factor here: scan this with an authenticator app, then type the code that it shows.")
    return _page(
        request, site, form,
        lead=lead,
        offer=_offer(request, at.user),
        create=json.dumps(passkeys.options(user=at.user)),
        buttons=[("", _("Switch on and log in")), ("passkey", _("Use a passkey instead"))],
    )  # fmt: skip


@never_cache
@csrf_protect
@sensitive_post_parameters()
def own_factor(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """One's own second factor: add and remove, switch off, get new recovery codes; on the password and a proof."""
    user, now = cast("User", request.user), timezone.now()
    if request.POST.get("act") == "passkey":
        return _new_passkey(request, site, user, now)
    form = ProvedForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            codes = _act(request, user, now, form)
        except DomainError as error:
            _say(form, error)
        else:
            if request.POST.get("act") == "add":
                return _add_passkey(request, site, user)
            return redirect("admin:second_factor") if not codes else _show_codes(request, site, codes, _index())
    factor, back = checking.factor_of(user.pk), {"href": _index(), "label": _("Back to the admin")}
    add = ("add", _("Add a passkey"))
    if factor is None:
        lead = _("No second factor is on. Scan this with an authenticator app, then type the code that it shows.")
        offer, buttons = _offer(request, user), [("on", _("Switch on")), add]
        return _page(request, site, form, lead=lead, offer=offer, buttons=buttons, link=back)
    lead = _("Your second factor is on; %(count)d recovery codes are left.") % {"count": len(factor.recovery_hashes)}
    buttons = [add, ("renew", _("New recovery codes"))]
    if not checking.is_required(user):
        buttons.append(("off", _("Switch off")))
    rows = _removable(user, factor)
    ask = _asked("prove", user, factor)
    return _page(request, site, form, lead=lead, get=ask, buttons=[*buttons, *rows], link=back)


def _act(request: HttpRequest, user: User, now: dt.datetime, form: ProvedForm) -> list[str] | None:
    """What the button says; new recovery codes where there are any."""
    actor, wanted = Actor.of(request), request.POST.get("act", "")
    password, proof = form.cleaned_data["password"], _proof(form, "prove")
    if wanted == "on":
        check_password(actor=actor, user=user, password=password, now=now)
        factor, codes = owner.confirm(actor=actor, user=user, code=form.cleaned_data["code"], now=now)
        steps.mark(request, factor)
        return codes
    if wanted == "renew":
        return owner.renew(actor=actor, user=user, password=password, proof=proof, now=now)
    if wanted == "add":
        owner.prove(actor=actor, user=user, password=password, proof=proof, now=now)
    elif wanted == "off" and not checking.is_required(user):
        owner.switch_off(actor=actor, user=user, password=password, proof=proof, now=now)
        steps.mark(request, None)
    elif wanted in dict(_removable(user, checking.factor_of(user.pk))):
        chosen = uuid.UUID(wanted.removeprefix("remove:"))
        passkeys.remove(actor=actor, user=user, passkey_id=chosen, password=password, proof=proof, now=now)
        steps.mark(request, checking.factor_of(user.pk))
    return None


# --- passkeys ---------------------------------------------------------------------------------------------------------
def _add_passkey(request: HttpRequest, site: AdminSite, user: User) -> HttpResponse:
    """Password and factor were right: the browser is asked to make one."""
    return _page(
        request, site, PasskeyForm(),
        lead=_("Your browser asks where the passkey is kept: on this device, on your telephone, on a security key."),
        create=json.dumps(passkeys.options(user=user)),
        buttons=[("passkey", _("Make a passkey"))],
        link={"href": reverse("admin:second_factor"), "label": _("Back")},
    )  # fmt: skip


def _new_passkey(request: HttpRequest, site: AdminSite, user: User, now: dt.datetime) -> HttpResponse:
    """What the browser has made of it; its challenge shows that the password was asked for."""
    form = PasskeyForm(request.POST)
    if form.is_valid():
        try:
            factor, codes = _register(Actor.of(request), user, form.cleaned_data["passkey"], now)
        except DomainError as error:
            _say(form, error)
        else:
            steps.mark(request, factor)
            return _show_codes(request, site, codes, _index()) if codes else redirect("admin:second_factor")
    back = {"href": reverse("admin:second_factor"), "label": _("Back")}
    return _page(request, site, form, buttons=[], link=back)


def _register(actor: Actor, user: User, given: str, now: dt.datetime) -> tuple[SecondFactor, list[str]]:
    name = _("Passkey of %(date)s") % {"date": now.date().isoformat()}
    answer = Answer("register", _read(given))
    _passkey, factor, codes = passkeys.register(actor=actor, user=user, name=name, answer=answer, now=now)
    return factor, codes


def _removable(user: User, factor: SecondFactor | None) -> list[tuple[str, str]]:
    """A button for each passkey, but for the last factor of who must have one."""
    found = [] if factor is None else list(factor.passkeys.all())
    if factor is None or (checking.is_required(user) and not factor.secret_sealed and len(found) == 1):
        return []
    return [(f"remove:{each.pk}", _("Remove “%(name)s”") % {"name": each.name}) for each in found]


def _asked(purpose: Purpose, user: User, factor: SecondFactor) -> str:
    """What a passkey may sign in the place of a code; empty where there is none."""
    if not factor.passkeys.exists():
        return ""
    return json.dumps(webauthn.request_options(purpose, user=user, factor=factor))


def _proof(form: CodeForm, purpose: Purpose) -> Proof:
    given = form.cleaned_data["passkey"]
    return Answer(purpose, _read(given)) if given else form.cleaned_data["code"]


def _read(given: str) -> dict[str, Any]:
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# --- pages ------------------------------------------------------------------------------------------------------------
def _offer(request: HttpRequest, user: User) -> Offer:
    """A new secret each time the page is opened; after a wrong code the one that was shown."""
    known = owner.offered(user=user) if request.method == "POST" else None
    return known or owner.offer(user=user)


def _say(form: forms.Form, error: DomainError) -> None:
    """A refusal that can be mended in the form; others, of which there are too many tries, end the page."""
    if error.code not in ("INVALID_CREDENTIALS", "INVALID_STATE", "SECOND_FACTOR_REQUIRED", "CONFLICT"):
        raise error
    form.add_error(None, error.message)


def _show_codes(request: HttpRequest, site: AdminSite, codes: list[str], target: str) -> HttpResponse:
    lead = _(
        "Keep these recovery codes where you find them without your authenticator: each opens your account once. "
        "They are not shown again."
    )
    return _page(request, site, None, lead=lead, codes=codes, link={"href": target, "label": _("I have kept them")})


def _index() -> str:
    return reverse("admin:index")


def _page(request: HttpRequest, site: AdminSite, form: forms.Form | None, **more: Any) -> HttpResponse:
    context = {**site.each_context(request), "title": _("Second factor"), "form": form, **more}
    context["passkey_hint"] = _("Leave the code empty to use a passkey.")
    context["passkey_failed"] = _("The browser used no passkey. Try again.")
    return TemplateResponse(request, "accounts/factor/page.html", context)
