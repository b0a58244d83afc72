"""Jobs on tunnels: thin, each calls one service. They are deferred in the transaction of the act that causes them."""

from __future__ import annotations

from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from apps.tunnels import services
from tunnel.contract import CLOSE_DISABLED

RETRY = RetryStrategy(max_attempts=10, wait=2)


@app.task(name="tunnels.end_devices", queue="tunnels", retry=RETRY)
def end_devices(*, epochs: dict[str, int], code: int, reason: str, request_id: str = "") -> None:
    """Take devices (id → epoch) offline up to that epoch and close their tunnels."""
    services.end_devices(epochs, code=code, reason=reason, request_id=request_id)


@app.task(name="tunnels.close_user", queue="tunnels", retry=RETRY)
def close_user(*, user_id: str, code: int = CLOSE_DISABLED, reason: str = "disabled", request_id: str = "") -> None:
    """Close all tunnels of a user's devices (a disabled account)."""
    services.close_user(user_id, code=code, reason=reason, request_id=request_id)


@app.task(name="tunnels.invalidate", queue="tunnels")
def invalidate(*, users: list[str], logins: list[str], request_id: str = "") -> None:
    """Drop the daemons' authorisations of users and logins (token hashes). Tried once: they expire by themselves."""
    services.invalidate(users=users, logins=logins, request_id=request_id)
