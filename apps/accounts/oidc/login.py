"""The last step of the code flow: the front end's code for a login of ours."""

import datetime as dt

from apps.accounts.oidc import flow
from apps.accounts.oidc.linking import user_of
from apps.accounts.services import Login, open_login
from apps.common.actor import Actor
from apps.common.errors import DomainError


def redeem(*, actor: Actor, code: str, agent: str, now: dt.datetime) -> Login:
    """A login of the user behind the code, made or linked at first sight.

    Raises INVALID_CREDENTIALS for the code, EMAIL_TAKEN, FORBIDDEN (registration is closed), ACCOUNT_DISABLED.
    """
    identity, link_for = flow.redeem(code)
    if link_for:  # it was begun to link an identity, and whoever began it is not whom this would log in
        raise flow.bad_code()
    user = user_of(identity, actor=actor, now=now)
    if not user.is_active:
        raise DomainError("ACCOUNT_DISABLED")
    return open_login(
        actor=actor, user=user, agent=agent, refused="ACCOUNT_DISABLED", now=now, detail={"issuer": identity.issuer}
    )
