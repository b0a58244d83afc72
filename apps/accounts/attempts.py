"""How often a login may fail (api.md, "Throttles"): for one e-mail from one address, and for one address.

The e-mail alone is no key: whoever knows it could lock its owner out by failing on purpose. From another address the
owner logs in as ever (docs/threat-model.md, "Guessing passwords").
"""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from apps.accounts.hashing import turns
from apps.common.emails import email_key
from apps.common.limits import throttle
from apps.common.limits.throttle import Window
from tunnel.contract import client_network


class Attempt:
    """One login that is being checked. It counts as failed unless it is told that it `succeeded`."""

    def __init__(self, windows: tuple[Window, ...]) -> None:
        self._taken = throttle.take(*windows)

    def succeeded(self) -> None:
        """The password was right: nothing is counted, and earlier failures stay counted."""
        self._taken.give_back()


@contextmanager
def attempt(email: str, address: str) -> Iterator[Attempt]:
    """Within the block the password may be checked. Raises RATE_LIMITED, OVERLOADED, the errors of Redis.

    Counted beforehand and given back afterwards, so that many at once guess no oftener than one after another; and
    only once it is its turn, so that those who wait take nothing away from each other.
    """
    counted_by = client_network(address)
    windows = (
        throttle.window("LOGIN", throttle.by_secret(email_key(email)), counted_by),
        throttle.window("LOGIN_ADDRESS", counted_by),
    )
    throttle.check(*windows)  # who is over the limit costs no turn
    with turns().turn():
        yield Attempt(windows)


def audited(email: str) -> str:
    """What was tried as an e-mail, for the trail; empty if it is none: people type passwords and tokens there."""
    try:
        validate_email(email)
    except ValidationError:
        return ""
    return email[:254]
