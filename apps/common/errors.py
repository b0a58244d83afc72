"""Every refusal of the product as one exception. It knows neither HTTP libraries nor drivers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from django.utils.translation import gettext_lazy as _

from tunnel.contract import ERROR_STATUS

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

DEFAULT_MESSAGES: Final["Mapping[str, StrOrPromise]"] = {
    "BAD_REQUEST": _("The request could not be read."),
    "VALIDATION_ERROR": _("Some fields are not valid; see details."),
    "UNAUTHENTICATED": _("Log in first: send Authorization: Bearer with a login token that is still valid."),
    "INVALID_CREDENTIALS": _("The e-mail or the password is wrong."),
    "SECOND_FACTOR_REQUIRED": _(
        "Send the code of your authenticator, or a recovery code, as `code` besides; or what a passkey signed."
    ),
    "TOKEN_EXPIRED": _("The token has expired."),
    "TOKEN_REVOKED": _("The token has been revoked."),
    "FORBIDDEN": _("This is not allowed."),
    "SIGNATURE_INVALID": _("The signed URL is forged or has expired; ask for a new one."),
    "ACCOUNT_DISABLED": _("This account is disabled; ask an administrator."),
    "NOT_FOUND": _("There is no such thing here."),
    "METHOD_NOT_ALLOWED": _("This method is not allowed here; see the Allow header."),
    "REQUEST_TIMEOUT": _("The request took too long to arrive."),
    "CONFLICT": _("This conflicts with what is there."),
    "EMAIL_TAKEN": _("This e-mail is already registered; log in, or use another one."),
    "SERIAL_TAKEN": _("You already have a device with this serial."),
    "INVALID_STATE": _("This cannot be done in the present state."),
    "AMBIGUOUS_DEVICE": _("Several devices are online: name one with device_id or X-Device-Id."),
    "PRECONDITION_FAILED": _("It is not, or no longer, what the request's conditions take for granted."),
    "PAYLOAD_TOO_LARGE": _("The body is too large."),
    "URI_TOO_LONG": _("The URL is too long."),
    "UNSUPPORTED_MEDIA_TYPE": _("This content type is not understood; send application/json."),
    "RANGE_NOT_SATISFIABLE": _("This range lies outside the content."),
    "UPGRADE_REQUIRED": _("This route speaks WebSocket only."),
    "RATE_LIMITED": _("Too many requests; wait for Retry-After seconds."),
    "QUOTA_EXCEEDED": _("Your account may have no more of these; see details."),
    "HEADERS_TOO_LARGE": _("The request's head is too large."),
    "INTERNAL_ERROR": _("Something went wrong on our side; name the request_id when you report it."),
    "NOT_IMPLEMENTED": _("This is not available here."),
    "AGENT_UNREACHABLE": _("The box's local server could not be reached."),
    "AGENT_BAD_RESPONSE": _("The box's local server gave no valid answer."),
    "TUNNEL_DISCONNECTED": _("The device is not connected; check that its agent runs."),
    "DATABASE_UNAVAILABLE": _("The database cannot be reached right now; try again shortly."),
    "CACHE_UNAVAILABLE": _("The session store cannot be reached right now; try again shortly."),
    "TUNNEL_UNAVAILABLE": _("No tunnel daemon answers right now; try again shortly."),
    "OVERLOADED": _("Too much is going on right now; try again shortly."),
    "TUNNEL_TIMEOUT": _("The box did not answer in time."),
}
"""What is said where a refusal says nothing more precise: one sentence that tells what to do, in two languages."""


class DomainError(Exception):
    """A refusal with a code of api.md, "Error codes"; its HTTP status follows from the code.

    Args:
        code: a key of `tunnel.contract.ERROR_STATUS`; anything else is a KeyError.
        message: one sentence for a person; empty: the code's own.
        details: what `error.details` holds, None to leave it out: a name (a bad field's, or what explains the code) →
            list of strings. Only `/healthz` holds something else, `checks`.
        retry_after: seconds for the `Retry-After` header; None leaves the default of the status (1 s on a 503).
        headers: further headers of the answer.
        status: another one than the code's own, for QUOTA_EXCEEDED where waiting does not help (409).
    """

    def __init__(
        self,
        code: str,
        message: "StrOrPromise" = "",
        *,
        details: Any = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        self.status = status or ERROR_STATUS[code]
        self.code = code
        self.message = str(message or DEFAULT_MESSAGES[code])  # translated here, while the request's language is active
        self.details = details
        self.headers = dict(headers or {})
        self.retry_after = retry_after if retry_after is not None or self.status != 503 else 1
        super().__init__(f"{code}: {self.message}")


def not_found() -> DomainError:
    """The refusal for what does not exist or is another user's: the two look alike."""
    return DomainError("NOT_FOUND")


def invalid(**fields: "StrOrPromise") -> DomainError:
    """A VALIDATION_ERROR that names each bad field with one sentence."""
    return DomainError("VALIDATION_ERROR", details={name: [str(text)] for name, text in fields.items()})
