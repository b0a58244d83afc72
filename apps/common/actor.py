"""Who acts, as plain values: for services, which know no HTTP, and for the audit trail."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts.

    Attributes:
        user_id: the user's id as text; empty for the system and for strangers.
        label: what a person recognises them by (an e-mail, or the name of a part of the system).
        address: the client's IP address, as the trusted proxies tell it; empty for the system.
        request_id: of the request or job in which it happens.
    """

    user_id: str
    label: str
    address: str = ""
    request_id: str = ""

    @classmethod
    def of(cls, request: Any) -> "Actor":
        """The actor of a Django or DRF request that went through `RequestContextMiddleware`."""
        plain = getattr(request, "_request", request)
        user = getattr(request, "user", None)
        known = user is not None and bool(getattr(user, "is_authenticated", False))
        return cls(
            user_id=str(user.pk) if known and user is not None else "",
            label=str(user) if known and user is not None else "",
            address=getattr(plain, "client_address", "") or plain.META.get("REMOTE_ADDR", ""),
            request_id=getattr(plain, "request_id", ""),
        )

    @classmethod
    def system(cls, label: str = "system", request_id: str = "") -> "Actor":
        """A part of the system that acts by itself, e.g. `worker` or `daemon`."""
        return cls(user_id="", label=label, request_id=request_id)
