"""The mails to users: which there are, in which language, and where their links lead.

A mail is a job of the worker, deferred in the transaction of the act. The job names the user and the kind of mail; the
token in its link is made when it is sent, so that neither the table of jobs nor a log ever holds one.
"""

import datetime as dt
from email.utils import make_msgid, parseaddr
from pathlib import Path
from typing import Any, Final, Literal, get_args

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.template.loader import render_to_string
from django.utils import translation
from django.utils.translation import gettext_lazy as _
from procrastinate.contrib.django import app as jobs

from apps.accounts import mail_tokens
from apps.accounts.models import User
from apps.common.actor import Actor
from apps.common.errors import DomainError
from apps.common.limits import throttle
from apps.common.sealing import seal, unseal
from tunnel.contract import language_of

FactorKind = Literal[
    "authenticator_added",
    "authenticator_removed",
    "passkey_added",
    "passkey_removed",
    "factor_disabled",
    "recovery_codes_renewed",
    "recovery_code_used",
]
Kind = Literal["verify", "reset", "password_changed", "email_changed", "taken_over"] | FactorKind
SEALED_FOR: Final = "accounts.mail"
NOWHERE: Final = "oidc.invalid"
"""The domain of placeholder addresses of users whose provider tells no e-mail (RFC 2606 §2: `.invalid`)."""
A_MINUTE: Final = 5
"""Mails of one kind to one user; more are dropped, whoever asks for them from wherever.

Of each kind for itself: who asks for many new passwords must not keep the word of a changed one from its owner.
"""
_LINKS: Final[dict[str, tuple[str, str]]] = {
    "verify": ("EMAIL_VERIFY_URL", "/#verify={token}"),
    "reset": ("EMAIL_RESET_URL", "/#reset={token}"),
}

logger = structlog.get_logger(__name__)


def required() -> None:
    """Raises NOT_IMPLEMENTED on a server that sends no mail (production without `VISIONA_EMAIL_HOST`)."""
    if not possible():
        raise DomainError("NOT_IMPLEMENTED", _("This server sends no mail; ask an administrator."))


def possible() -> bool:
    """Whether mails are sent, or in development written into a folder."""
    return bool(settings.VISIONA["EMAIL_HOST"]) or settings.VISIONA["ENV"] != "production"


def defer(kind: Kind, user: User | None, *, actor: Actor, email: str = "") -> None:
    """Have the worker send it, if the caller's transaction stands.

    Args:
        user: None: nobody; the job does nothing, and who watches the clock learns nothing.
        email: where to, if not to the user's present address; sealed in the job.
    """
    if possible():
        defer_to("" if user is None else str(user.pk), kind, actor=actor, email=email)


def defer_to(user_id: str, kind: Kind, *, actor: Actor, email: str = "") -> None:
    """As `defer`, for whoever knows the id alone; an empty one is nobody's."""
    jobs.configure_task("accounts.send_mail").defer(
        kind=kind,
        user_id=user_id,
        email=seal(email, purpose=SEALED_FOR) if email else "",  # the log names a job's arguments
        language=translation.get_language() or settings.LANGUAGE_CODE,
        request_id=actor.request_id,
    )


def send(kind: Kind, user: User, *, email: str, language: str, now: dt.datetime) -> bool:
    """Send it now, in the user's language, else in `language`. False: there is no reason to, or too many were sent.

    Raises OSError and smtplib's errors.
    """
    if email and "@" not in email:  # a job of the release before has it in the clear
        email = unseal(email, purpose=SEALED_FOR)
    to = email or user.email
    if not _wanted(kind, user, email) or to.rpartition("@")[2].endswith(".invalid"):
        return False
    try:
        throttle.take(throttle.Window(f"visiona:throttle:mail:{kind}:{user.pk}", A_MINUTE))
    except DomainError:
        logger.warning("mail_dropped", kind=kind, user=str(user.pk))
        return False
    message = _message(kind, user, to, language_of(user.locale, language), now)
    if not settings.VISIONA["EMAIL_HOST"]:
        Path(settings.MAIL_FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)  # its links open accounts
    message.send()
    logger.info("mail_sent", kind=kind, user=str(user.pk))  # neither the address nor the link
    return True


def _wanted(kind: Kind, user: User, email: str) -> bool:
    """Whether it is still to be sent: what happened since the act may have made it pointless."""
    if not user.is_active:
        return False
    if kind == "verify":
        return bool(email) or user.email_verified_at is None
    if kind == "reset":
        return may_have_password(user)
    return True


def may_have_password(user: User) -> bool:
    """Whether a password may be set by mail. Who came by a provider logs in there, with its second factors."""
    return user.has_usable_password() or not user.oidc_subject


def takes_over(user: User) -> bool:
    """Whether a password that is set by mail makes the account another's than who prepared it, as far as is known."""
    return user.email_verified_at is None and user.has_usable_password()


def _message(kind: Kind, user: User, to: str, language: str, now: dt.datetime) -> EmailMessage:
    with translation.override(language):
        template = "factor" if kind in get_args(FactorKind) else kind
        text = render_to_string(f"accounts/mail/{template}.{language}.txt", _context(kind, user, to, now))
    subject, _blank, body = text.partition("\n\n")
    sender = settings.DEFAULT_FROM_EMAIL
    domain = parseaddr(sender)[1].rpartition("@")[2] or "localhost"
    headers = {"Message-ID": make_msgid(domain=domain), "Auto-Submitted": "auto-generated"}
    return EmailMessage(subject.strip(), body, sender, [to], headers=headers)


def _context(kind: Kind, user: User, to: str, now: dt.datetime) -> dict[str, Any]:
    values = settings.VISIONA
    # A name is whatever somebody wrote: to an address that is not shown to be theirs yet it would be anybody's advert.
    name = " ".join(user.name.split()) if kind != "verify" and user.email_verified_at is not None else ""
    context: dict[str, Any] = {"name": name, "email": user.email, "to": to, "site": values["PUBLIC_URL"]}
    context["takes_over"], context["kind"] = takes_over(user), kind
    if kind in ("verify", "reset"):
        purpose: mail_tokens.Purpose = "verify" if kind == "verify" else "reset"
        setting, fallback = _LINKS[kind]
        template = values[setting] or values["PUBLIC_URL"] + fallback
        token = mail_tokens.issue(purpose, user, email=to, now=now)
        context["link"] = template.replace("{token}", token)
        seconds: int = values["EMAIL_VERIFY_SECONDS" if kind == "verify" else "EMAIL_RESET_SECONDS"]
        context["hours"], context["minutes"] = seconds // 3600, max(1, seconds // 60)
    return context
