"""May this caller reach that device? The one answer for the fast lane (`POST /internal/authorize`) and for tickets.

It knows users, devices, logins and tickets as the apps below tell them, and no HTTP. A refusal is a DomainError with
the code that the DRF lane gives; the errors of Redis and PostgreSQL pass: a look-up that failed is no refusal.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

from django.conf import settings
from django.utils.translation import gettext as _

from apps.accounts import demo, sessions
from apps.accounts.models import User
from apps.accounts.oidc import bearer
from apps.accounts.selectors import active_user
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found
from apps.common.ids import as_uuid
from apps.common.limits import throttle
from apps.devices.selectors import choose_device, online, owned_device
from apps.proxy import origins, selectors, tickets
from apps.tunnels.registry import Entry
from tunnel.contract import LOGIN_PREFIX, Authorized, AuthorizeRequest, hash_token, token_prefix


@dataclass(frozen=True, slots=True)
class Reach:
    """An allowed caller: the user, the login's token hash (empty for the static user), and where the tunnel is."""

    user_id: uuid.UUID
    login: str
    entry: Entry
    reusable: bool = False
    """By a ticket that may be shown again."""


def authorize(ask: AuthorizeRequest, *, now: dt.datetime) -> Authorized:
    """Decide whether the caller may reach the device. Spends a ticket last of all. Raises DomainError for a refusal."""
    if ask["kind"] == "ticket":
        reach = _by_ticket(ask, now)
    else:
        reach = _by_login(ask, now)
    counted = throttle.window("FAST_LANE", str(reach.user_id))
    if ask["kind"] in ("bearer", "none") or reach.reusable:
        throttle.take(counted)  # a stream that runs is no new call; a ticket for one use was counted when it was made
    answer = Authorized(
        allowed=True,
        device_id=reach.entry.device_id,
        epoch=reach.entry.epoch,
        session=reach.entry.session,
        node_url=reach.entry.node_url,
        user_id=str(reach.user_id),
        login=reach.login,
        ttl=0.0 if counted.limit else settings.VISIONA["AUTHORIZE_SECONDS"],  # to be counted, each call is asked about
        body_max=settings.VISIONA["PROXY_BODY_MAX_BYTES"],
    )
    if reach.reusable:
        answer["reusable"] = True
    if reach.entry.moving:
        answer["moving"] = True
    return answer


# --- logins -----------------------------------------------------------------------------------------------------------
def _by_login(ask: AuthorizeRequest, now: dt.datetime) -> Reach:
    token_hash = _login_hash(ask, now)
    named = as_uuid(ask["device"])
    if token_hash and named is not None:
        return _named(ask, token_hash, named, now)
    user = _static_user() if not token_hash else _user_of(sessions.use_hash(token_hash, now=now))
    _check_origin(ask, shown=bool(token_hash))
    target = choose_device(user.pk, header=ask["device"] or None, query=None)
    return Reach(user.pk, token_hash, target.entry)


def _login_hash(ask: AuthorizeRequest, now: dt.datetime) -> str:
    """The hash of the login token or of a JWT that was found good, empty for the static development user.

    Raises UNAUTHENTICATED, and for a JWT what `bearer.login` raises.
    """
    token = ask["token"]
    if ask["kind"] == "login":
        return token
    static = bool(demo.static_user_id())
    if static and (ask["kind"] == "none" or token == demo.STATIC_TOKEN):
        return ""
    if ask["kind"] == "none":
        raise DomainError("UNAUTHENTICATED")
    if token_prefix(token) != LOGIN_PREFIX:
        stranger = Actor("", "", ask["address"], ask["request_id"])
        return bearer.login(token, actor=stranger, now=now)[1].token_hash
    return hash_token(token)


def _named(ask: AuthorizeRequest, token_hash: str, device_id: uuid.UUID, now: dt.datetime) -> Reach:
    """The usual case, asked hundreds of times a second: one call to Redis, one query."""
    login, entry = selectors.login_and_entry(token_hash, str(device_id), now=now)
    if login is None:
        raise DomainError("UNAUTHENTICATED")
    device = owned_device(login.user_id, device_id)
    if device is None:
        _user_of(login)
    elif not device.owner.is_active:
        raise DomainError("UNAUTHENTICATED")
    _check_origin(ask)
    if device is None:
        raise not_found()
    return Reach(login.user_id, token_hash, online(entry))


def _static_user() -> User:
    if not demo.static_user_id():
        raise DomainError("UNAUTHENTICATED")
    user = demo.ensure_demo_user()
    if not user.is_active:
        raise DomainError("UNAUTHENTICATED")
    return user


def _user_of(login: sessions.LoginSession | None) -> User:
    user = active_user(login.user_id) if login is not None else None
    if user is None:
        raise DomainError("UNAUTHENTICATED")
    return user


def _check_origin(ask: AuthorizeRequest, *, shown: bool = True) -> None:
    """Raise FORBIDDEN for a foreign page, where a browser would let one ask. `shown`: the caller shows a credential,
    which no page has by itself."""
    if ask["websocket"] or ask["kind"] == "ticket" or not shown:
        origins.require_allowed(ask["origin"], ask["host"])


# --- tickets ----------------------------------------------------------------------------------------------------------
def ticket_holder(text: str, *, method: str, now: dt.datetime) -> tuple[User, tickets.Ticket]:
    """The user of an unspent ticket.

    Raises UNAUTHENTICATED: unknown, spent, expired, its login is over, or it is not good for the method.
    """
    ticket = tickets.find(text)
    if ticket is None:
        raise DomainError("UNAUTHENTICATED", _("The ticket is unknown, spent or too old; ask for a new one."))
    if method != "GET" and not (method == "HEAD" and ticket.reusable):
        raise DomainError("UNAUTHENTICATED", _("A ticket stands for a login on GET alone."))
    if not ticket.login:
        return _static_user(), ticket
    return _user_of(sessions.use_hash(ticket.login, now=now)), ticket


def device_of_ticket(ticket: tickets.Ticket, named: str | None) -> str:
    """The ticket's device, which the request may name or leave out. Raises FORBIDDEN for another device, NOT_FOUND for
    a text that is no id."""
    if named:
        asked = as_uuid(named)
        if asked is None:
            raise not_found()
        if str(asked) != ticket.device_id:
            raise DomainError("FORBIDDEN", _("The ticket is for another device."))
    return ticket.device_id


def check_path(ticket: tickets.Ticket, path: bytes) -> None:
    """Raise FORBIDDEN where the ticket is not for this path (raw, as the box will see it)."""
    if not ticket.covers(path):
        raise DomainError("FORBIDDEN", _("The ticket is for another path."))


def check_upgrade(ticket: tickets.Ticket) -> None:
    """Raise FORBIDDEN where the ticket opens no WebSocket."""
    if ticket.reusable:
        raise DomainError("FORBIDDEN", _("A reusable ticket opens no WebSocket; ask for one for a single use."))


def spend_ticket(ticket: tickets.Ticket) -> None:
    """Spend the ticket, unless it is reusable. Of callers that do so at once one succeeds; the others get
    UNAUTHENTICATED."""
    if not (ticket.reusable or tickets.spend(ticket)):
        raise DomainError("UNAUTHENTICATED", _("The ticket is spent; ask for a new one."))


def _by_ticket(ask: AuthorizeRequest, now: dt.datetime) -> Reach:
    """A refusal leaves the ticket as it is: it was not used. Of many at once that are allowed, one spends it."""
    user, ticket = ticket_holder(ask["token"], method=ask["method"], now=now)
    _check_origin(ask)
    if ask["websocket"]:
        check_upgrade(ticket)
    device_id = device_of_ticket(ticket, ask["device"])
    target = choose_device(user.pk, header=device_id, query=None)
    check_path(ticket, ask["path"].encode("ascii"))
    if ask.get("spend", True):
        spend_ticket(ticket)
    return Reach(user.pk, ticket.login, target.entry, ticket.reusable)
