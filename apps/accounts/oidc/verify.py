"""The claims of a token by the provider's keys, which are fetched anew once where the known ones do not fit."""

import datetime as dt
from typing import Any

from apps.accounts.oidc import claims
from apps.accounts.oidc.claims import TokenError
from apps.accounts.oidc.config import Config
from apps.accounts.oidc.provider import provider


def verified(token: str, config: Config, *, now: dt.datetime, at_once: bool) -> dict[str, Any]:
    """What the provider says in a token. Raises TokenError, and DomainError OVERLOADED while nothing is known of it.

    A key that is not known, or a signature that a known one does not make (keys are changed under one id too), has the
    keys fetched, within the bounds of `provider`.

    Args:
        at_once: the token came from the provider itself, in answer to us, and from no stranger.
    """
    ours = provider(config)
    known = ours.known_with(claims.key_id(token), at_once=at_once)
    try:
        return claims.read(token, known.keys, config, issuer=known.issuer, now=now)
    except TokenError as error:
        if not error.unsigned:
            raise
        newer = ours.newer_than(known, at_once=at_once)
        if newer is known:
            raise
    return claims.read(token, newer.keys, config, issuer=newer.issuer, now=now)
