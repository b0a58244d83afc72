"""Passkeys by WebAuthn (level 2), with Yubico's `fido2`: what a browser is asked to sign, and whether it has.

A challenge stands in Redis, under what it is for: the purpose, the user, and their second factor as it was then. So it
is good for none of these but its own, for five minutes, and once, whatever comes back.

User verification is "preferred": the password is the first factor, the passkey shows possession. "Required" would
refuse security keys without a PIN, and gain nothing beside a password that was checked.
"""

import datetime as dt
import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.utils.translation import gettext as _
from fido2.cose import CoseKey
from fido2.server import Fido2Server
from fido2.utils import websafe_encode
from fido2.webauthn import (
    AttestationConveyancePreference,
    AttestedCredentialData,
    AuthenticationResponse,
    AuthenticatorData,
    CollectedClientData,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    RegistrationResponse,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from apps.accounts.models import Passkey, SecondFactor, User
from apps.common import redis
from apps.common.errors import DomainError

logger = structlog.get_logger(__name__)

T = TypeVar("T")
Purpose = Literal["register", "login", "admin", "prove"]
"""`login`: a login of the API; `admin`: one of the admin; `prove`: a change of who is logged in."""
CHALLENGE_SECONDS: Final = 300
NAME: Final = "VisionA Cloud"
_PREFERRED: Final = UserVerificationRequirement.PREFERRED
_KEY: Final = redis.PREFIX + "passkey:"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a browser brought back (`PublicKeyCredential.toJSON()`), for that purpose. Anybody's bytes until checked."""

    purpose: Purpose
    credential: Mapping[str, Any]


# --- what is asked ----------------------------------------------------------------------------------------------------
def creation_options(*, user: User, factor: SecondFactor | None) -> dict[str, Any]:
    """For `navigator.credentials.create`, as `PublicKeyCredential.parseCreationOptionsFromJSON` takes it."""
    known = [] if factor is None else [credential_of(each) for each in factor.passkeys.all()]
    options, state = _server().register_begin(
        PublicKeyCredentialUserEntity(id=user.pk.bytes, name=user.email, display_name=user.name or user.email),
        credentials=known,  # no authenticator holds two
        resident_key_requirement=ResidentKeyRequirement.PREFERRED,  # those are kept in sync with a new telephone
        user_verification=_PREFERRED,
    )
    _remember("register", user.pk, factor, state["challenge"])
    return {**options.public_key, "timeout": CHALLENGE_SECONDS * 1000}


def request_options(purpose: Purpose, *, user: User, factor: SecondFactor | None) -> dict[str, Any]:
    """For `navigator.credentials.get`. Raises INVALID_STATE for who has no passkey."""
    known = [] if factor is None else [credential_of(each) for each in factor.passkeys.all()]
    if not known:
        raise DomainError("INVALID_STATE", _("This account has no passkey."))
    options, state = _server().authenticate_begin(known, user_verification=_PREFERRED)
    _remember(purpose, user.pk, factor, state["challenge"])
    return {**options.public_key, "timeout": CHALLENGE_SECONDS * 1000}


# --- what came back ---------------------------------------------------------------------------------------------------
def registered(answer: Answer, *, user: User, factor: SecondFactor | None) -> AuthenticatorData | None:
    """The new credential and its counter; None for what is none, or answers no challenge of this user."""
    given = _tried(lambda: RegistrationResponse.from_dict(answer.credential))
    if given is None or not _spend("register", user.pk, factor, given.response.client_data):
        return None
    made = _tried(lambda: _server().register_complete(_state(given.response.client_data), given))
    key = made.credential_data.public_key if made and made.credential_data else None
    return made if key is not None and key.ALGORITHM in CoseKey.supported_algorithms() else None


def used(answer: Answer, *, factor: SecondFactor, now: dt.datetime) -> Literal["", "wrong", "counter"]:
    """Why the answer does not do; empty if it does. The factor's row is locked by the caller.

    `counter`: it was signed by the right key, and fewer signatures were made than before: there are two of it (§6.1.1).
    """
    given = _tried(lambda: AuthenticationResponse.from_dict(answer.credential))
    if given is None or not _spend(answer.purpose, factor.user_id, factor, given.response.client_data):
        return "wrong"
    passkey = factor.passkeys.filter(credential_id=given.raw_id).first()
    if passkey is None:
        return "wrong"
    known = [credential_of(passkey)]
    if _tried(lambda: _server().authenticate_complete(_state(given.response.client_data), known, given)) is None:
        return "wrong"
    counter = given.response.authenticator_data.counter
    if (counter or passkey.sign_count) and counter <= passkey.sign_count:
        return "counter"
    passkey.sign_count, passkey.last_used_at = counter, now
    passkey.save(update_fields=["sign_count", "last_used_at", "updated_at"])
    return ""


def _tried(act: Callable[[], T]) -> T | None:
    """None where the library fails at it. It parses JSON and CBOR of anybody without a schema, and what it raises then
    is whatever its parsers happen to; nothing but computing is done here, so no other failure hides in it."""
    try:
        return act()
    except Exception as error:  # noqa: BLE001 - as said
        logger.info("passkey_refused", error=type(error).__name__)
        return None


def _state(told: CollectedClientData) -> dict[str, Any]:
    """What the library keeps between asking and answer; that this challenge was asked is known by then."""
    return {"challenge": websafe_encode(told.challenge), "user_verification": _PREFERRED}


def credential_of(passkey: Passkey) -> AttestedCredentialData:
    return AttestedCredentialData(bytes(passkey.attested))


# --- challenges -------------------------------------------------------------------------------------------------------
def _remember(purpose: Purpose, user_id: uuid.UUID, factor: SecondFactor | None, challenge: str) -> None:
    redis.client().set(_key(purpose, user_id, factor, challenge), "1", ex=CHALLENGE_SECONDS)


def _spend(purpose: Purpose, user_id: uuid.UUID, factor: SecondFactor | None, told: CollectedClientData) -> bool:
    """Whether we have asked for this; from now on we have not."""
    if told.cross_origin:  # shown in a frame of another site
        return False
    return bool(redis.client().delete(_key(purpose, user_id, factor, websafe_encode(told.challenge))))


def _key(purpose: Purpose, user_id: uuid.UUID, factor: SecondFactor | None, challenge: str) -> str:
    on = factor.pk if factor is not None and factor.confirmed_at else "off"
    return f"{_KEY}{purpose}:{user_id}:{on}:{challenge}"


# --- who we are -------------------------------------------------------------------------------------------------------
def _server() -> Fido2Server:
    """The relying party is the host of `PUBLIC_URL`. Its pages, and those that `CORS_ALLOWED_ORIGINS` names on it or
    below it, may ask: no other name below it, since those of boxes are."""
    return _server_of(settings.VISIONA["PUBLIC_URL"], tuple(settings.VISIONA["CORS_ALLOWED_ORIGINS"]))


@functools.lru_cache(maxsize=4)
def _server_of(public: str, others: tuple[str, ...]) -> Fido2Server:
    host = urlsplit(public).hostname or ""
    allowed = {_origin(public)}
    for each in others:
        name = urlsplit(each).hostname or ""
        if name == host or name.endswith(f".{host}"):
            allowed.add(_origin(each))
    return Fido2Server(
        PublicKeyCredentialRpEntity(id=host, name=NAME),
        attestation=AttestationConveyancePreference.NONE,
        verify_origin=lambda origin: origin in allowed,
    )


def _origin(url: str) -> str:
    """As a browser writes it: no path, and no port that goes without saying."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    said = parts.port is not None and parts.port != _DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{host}:{parts.port}" if said else f"{parts.scheme}://{host}"
