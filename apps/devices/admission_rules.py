"""Who is admitted, and as which device: decisions on rows in memory. No I/O, no clock, no HTTP.

The rows come locked from `apps.devices.admission`; what changes is noted in the `Book`, which it then writes.
"""

from __future__ import annotations

import datetime as dt
import hmac
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from apps.accounts import quotas
from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.devices.serials import is_junk
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.pairing.services import EXPIRED, SESSION_IDLE
from tunnel.contract import (
    LOCAL_ADDRESS,
    PAIRING_PREFIX,
    SESSION_PREFIX,
    Credential,
    TokenPrefix,
    hash_token,
    new_token,
    token_prefix,
)

ROTATE_AFTER: Final = dt.timedelta(days=30)
REDEEM_AGAIN_WITHIN: Final = dt.timedelta(minutes=10)
"""A lost answer locks no box out: for this long the same instance may redeem its pairing token again (tunnel.md)."""
QUOTA_SECONDS: Final = 300
"""After which a box asks again that was one too many for its owner: some other may be gone by then."""
UNKNOWN: Final = "This token is not known; create a new pairing token and start the agent with it."
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_LOCAL: Final = re.compile(LOCAL_ADDRESS)
Presence = Literal["offline", "answers", "silent", "unknown"]
"""Of a device: it has no tunnel; it has one, whose agent answered a ping, did not, or could not be asked."""
How = Literal["created", "revived", "paired_anew", "registered", "redeemed_again", ""]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A credential that is not admitted, and why."""

    error: DomainError

    @classmethod
    def of(cls, code: str, message: str = "", retry_after: int | None = None) -> Refusal:
        """As DomainError takes them; `retry_after` in seconds."""
        return cls(DomainError(code, message, retry_after=retry_after))


@dataclass(frozen=True, slots=True)
class Ask:
    """A credential as it is judged: the token only as its hash, what an agent says of itself bounded and cleaned."""

    prefix: TokenPrefix | None
    token_hash: str
    session: str
    address: str
    request_id: str
    agent: str
    features: tuple[str, ...]
    instance: str
    serial: str
    claimed_serial: str
    chip: str
    firmware: str
    handover: str
    local: str
    local_listening: bool | None
    fault: Refusal | None

    @classmethod
    def of(cls, credential: Credential) -> Ask:
        """The credential, cleaned; with `fault` if it can be refused as it stands."""
        serial, instance = credential.get("serial", "").strip(), credential.get("instance", "").strip()
        local = credential.get("local", "")
        local = local if _LOCAL.fullmatch(local) else ""
        prefix = token_prefix(credential["token"])
        fault: Refusal | None = None
        if prefix not in (PAIRING_PREFIX, SESSION_PREFIX):
            fault = Refusal.of("UNAUTHENTICATED", UNKNOWN)
        elif len(serial) > 128 or _CONTROL.search(serial):
            fault = Refusal.of("VALIDATION_ERROR", "X-VisionA-Serial may have 128 printable characters at most.")
        elif len(instance) > 128 or _CONTROL.search(instance):
            fault = Refusal.of("VALIDATION_ERROR", "X-VisionA-Instance may have 128 printable characters at most.")
        return cls(
            prefix=prefix,
            token_hash=hash_token(credential["token"]),
            session=credential["session"],
            address=clean(credential["address"], 64),
            request_id=clean(credential.get("request_id", ""), 64),
            agent=clean(credential.get("agent", ""), 128),
            features=tuple(clean(name, 32).replace(",", "") for name in credential.get("features", ())[:32]),
            instance=instance,
            serial="" if is_junk(serial) else serial,
            claimed_serial=serial,
            chip=clean(credential.get("chip", ""), 64),
            firmware=clean(credential.get("firmware", ""), 64),
            handover=clean(credential.get("handover", ""), 64),
            local=local,
            local_listening=credential.get("local_listening") if local else None,
            fault=fault,
        )


def clean(text: str, limit: int) -> str:
    """What an agent says, without control characters (PostgreSQL takes no NUL) and no longer than a column."""
    return _CONTROL.sub("", text).strip()[:limit]


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """An admitted credential: the device that it is, with which epoch, and the session token to be stored, if any."""

    ask: Ask
    device: Device
    epoch: int
    session_token: str | None
    how: How


@dataclass(frozen=True, slots=True, eq=False)
class Twins:
    """A box that says the serial of another live device of its owner."""

    ask: Ask
    device: Device
    other: Device


class UnaskedError(Exception):
    """Whether a device is online must be asked before it is paired anew; then the call is to be judged again."""


@dataclass(slots=True)
class Book:
    """The rows that a call rests on, and what its verdicts change in them.

    `answers`: of each device that was looked at as a possible twin, whether its agent is there (`Presence`).
    """

    reconnect: bool
    answers: Mapping[uuid.UUID, Presence] = field(default_factory=dict)
    pairing: dict[str, PairingToken] = field(default_factory=dict)
    sessions: dict[str, SessionToken] = field(default_factory=dict)
    devices: dict[uuid.UUID, Device] = field(default_factory=dict)
    active_owners: set[uuid.UUID] = field(default_factory=set)
    new_devices: list[Device] = field(default_factory=list)
    changed_devices: dict[uuid.UUID, Device] = field(default_factory=dict)
    changed_pairing: dict[str, PairingToken] = field(default_factory=dict)
    new_sessions: list[SessionToken] = field(default_factory=list)
    used_sessions: set[str] = field(default_factory=set)
    rotated: set[str] = field(default_factory=set)  # those whose successor is issued now
    succeeded: set[str] = field(default_factory=set)  # those whose successor was used first now
    repaired: set[uuid.UUID] = field(default_factory=set)  # devices whose older tokens are revoked
    paired: list[Grant] = field(default_factory=list)
    twins: list[Twins] = field(default_factory=list)
    room: dict[uuid.UUID, quotas.Standing] = field(default_factory=dict)  # how owners stand with their devices

    def add_devices(self, devices: Iterable[Device]) -> None:
        """Rows that the caller has locked."""
        for device in devices:
            self.devices[device.id] = device

    def lift(self, epochs: Mapping[str, int]) -> None:
        """The registry's epochs count where they are higher than the table's: the higher one wins (data.md)."""
        for device in self.devices.values():
            device.epoch = max(device.epoch, epochs.get(str(device.id), 0))

    def by_serial(self, owner_id: uuid.UUID, serial: str) -> Device | None:
        """The owner's live device of this serial, else the one that was unpaired last, else None."""
        same = [each for each in self.devices.values() if each.owner_id == owner_id and each.serial == serial]
        return min(same, key=_live_first, default=None)

    def one_more(self, owner_id: uuid.UUID) -> Refusal | None:
        """Count another device of the owner's; None: there is room for it. The agent asks again later."""
        stands = self.room.get(owner_id)
        if stands is None or stands.limit is None:
            return None
        if not stands.left:
            error = quotas.exceeded("devices", stands)
            return Refusal.of("QUOTA_EXCEEDED", error.message, retry_after=QUOTA_SECONDS)
        self.room[owner_id] = replace(stands, used=stands.used + 1)
        return None

    def revoke_sessions(self, device_id: uuid.UUID, now: dt.datetime) -> None:
        """Of a device that is paired anew: in the table, and of what this call has read or issued."""
        self.repaired.add(device_id)
        for token in (*self.sessions.values(), *self.new_sessions):
            if token.device_id == device_id and token.revoked_at is None:
                token.revoked_at, token.revoke_reason = now, "paired_anew"


def _live_first(device: Device) -> tuple[bool, float]:
    return device.deleted_at is not None, -device.deleted_at.timestamp() if device.deleted_at else 0.0


def admit(ask: Ask, book: Book, now: dt.datetime) -> Grant | Refusal:
    """The verdict on one credential; the book notes what it changes."""
    if ask.prefix == PAIRING_PREFIX:
        return _admit_pairing(ask, book, now)
    return _admit_session(ask, book, now)


# --- session tokens ---------------------------------------------------------------------------------------------------
def _admit_session(ask: Ask, book: Book, now: dt.datetime) -> Grant | Refusal:
    token = book.sessions.get(ask.token_hash)
    if token is None:
        return Refusal.of("UNAUTHENTICATED", UNKNOWN)
    device = book.devices.get(token.device_id)
    if token.revoked_at is not None and token.revoke_reason != EXPIRED:
        return Refusal.of("TOKEN_REVOKED")
    if device is None or device.deleted_at is not None:
        return Refusal.of("TOKEN_REVOKED")
    if token.revoked_at is not None or token.expires_at <= now:
        return Refusal.of("TOKEN_EXPIRED")
    if device.owner_id not in book.active_owners:
        return Refusal.of("ACCOUNT_DISABLED")
    _take_serial(ask, device, book)
    if token.last_used_at is None and token.rotated_from_id is not None:
        book.succeeded.add(token.rotated_from_id)
    token.last_used_at = now
    book.used_sessions.add(token.token_hash)
    fresh = None
    if token.issued_at + ROTATE_AFTER <= now and token.token_hash not in book.rotated:
        book.rotated.add(token.token_hash)
        fresh = _issue_session(device, book, now, rotated_from=token.token_hash)
    return _grant(ask, device, book, fresh, "")


# --- pairing tokens ---------------------------------------------------------------------------------------------------
def _admit_pairing(ask: Ask, book: Book, now: dt.datetime) -> Grant | Refusal:
    token = book.pairing.get(ask.token_hash)
    if token is None:
        return Refusal.of("UNAUTHENTICATED", UNKNOWN)
    refusal = _dead(ask, token, book, now)
    if refusal is not None:
        return refusal
    if token.owner_id not in book.active_owners:
        return Refusal.of("ACCOUNT_DISABLED")
    if token.status == PairingStatus.ISSUED:
        redeemed = _redeem(ask, token, book, now)
        if isinstance(redeemed, Refusal):
            return redeemed
        device, how = redeemed
        token.device_id, token.paired_at, token.instance = device.id, now, ask.instance
    else:
        known = book.devices.get(token.device_id) if token.device_id else None
        if known is None or known.deleted_at is not None:
            return Refusal.of("TOKEN_REVOKED")
        device, how = known, ("redeemed_again" if token.status == PairingStatus.CONSUMED else "")
        _take_serial(ask, device, book)
    fresh = None
    if ask.agent:  # an agent that keeps a session token: its pairing token is used up
        if how == "redeemed_again":
            book.revoke_sessions(device.id, now)
        fresh = _issue_session(device, book, now)
        token.status = PairingStatus.CONSUMED
        token.instance = ask.instance
    else:
        token.status = PairingStatus.PAIRED
    book.changed_pairing[token.token_hash] = token
    grant = _grant(ask, device, book, fresh, how)
    if how:
        book.paired.append(grant)
    return grant


def _dead(ask: Ask, token: PairingToken, book: Book, now: dt.datetime) -> Refusal | None:
    """Why a known pairing token is good for nothing (more), or None. `expires_at` bounds its first use only."""
    if token.status == PairingStatus.REVOKED:
        return Refusal.of("TOKEN_REVOKED")
    if token.status == PairingStatus.ISSUED:
        return Refusal.of("TOKEN_EXPIRED") if token.expires_at <= now else None
    if token.status == PairingStatus.PAIRED:
        return None if book.reconnect else Refusal.of("TOKEN_REVOKED")
    same = ask.agent and ask.instance and hmac.compare_digest(ask.instance.encode(), token.instance.encode())
    if same and token.paired_at is not None and now < token.paired_at + REDEEM_AGAIN_WITHIN:
        return None
    return Refusal.of("TOKEN_REVOKED")


def _redeem(ask: Ask, token: PairingToken, book: Book, now: dt.datetime) -> tuple[Device, How] | Refusal:
    """The device that a pairing token makes at its first use: by serial of the same owner, else a new one.

    A serial is no proof: while the device of that serial is there with another agent, the box becomes a device of its
    own, and nothing of the other is revoked (data.md, "What is atomic").
    """
    device = book.by_serial(token.owner_id, ask.serial) if ask.serial else None
    twin = device if device is not None and _is_there(ask, device, book) else None
    if device is None or twin is not None or device.deleted_at is not None:  # there will be one more
        full = book.one_more(token.owner_id)
        if full is not None:
            return full
    if device is None or twin is not None:
        name = token.name or ask.serial or f"Box {str(token.id)[-8:]}"
        own = ask.serial if twin is None else ""
        device = Device(owner_id=token.owner_id, name=name, serial=own or None)
        if twin is not None:
            _note_twins(ask, device, twin, book)
        book.new_devices.append(device)
        book.devices[device.id] = device
        return device, "created"
    device.cloned_at = None  # whoever had its credential has it no more
    how: How = "paired_anew"
    if device.deleted_at is not None:
        device.deleted_at, how = None, "revived"
    elif device.epoch == 0:
        how = "registered"
    book.revoke_sessions(device.id, now)
    for other in book.pairing.values():
        if other is not token and other.device_id == device.id and other.status != PairingStatus.REVOKED:
            other.status = PairingStatus.REVOKED
            book.changed_pairing[other.token_hash] = other
    return device, how


def _is_there(ask: Ask, device: Device, book: Book) -> bool:
    """Whether the device has its own agent just now, another than the one that asks. Raises UnaskedError."""
    if device.deleted_at is not None:
        return False
    same = bool(ask.instance) and ask.instance == device.instance
    if same:
        return False
    if device.id in book.changed_devices:  # it was admitted a moment ago, in this very call
        return True
    presence = book.answers.get(device.id)
    if presence is None:
        raise UnaskedError
    # One that names no instance may be the same agent: then nothing but an answer tells two of them.
    other = bool(ask.instance and device.instance)
    return presence == "answers" or (presence == "unknown" and other)


def _note_twins(ask: Ask, device: Device, other: Device, book: Book) -> None:
    """The device says the serial of another one; told once."""
    if device.claimed_serial != ask.serial:
        device.claimed_serial = ask.serial
        book.twins.append(Twins(ask, device, other))


def _take_serial(ask: Ask, device: Device, book: Book) -> None:
    """Let a device that is known by its token go by the serial that its agent says.

    The token decides which device it is; its serial follows the hardware, unless another live one has that serial.
    """
    if not ask.serial:
        device.claimed_serial = ask.claimed_serial
        return
    if ask.serial == device.serial:
        device.claimed_serial = ""
        return
    other = book.by_serial(device.owner_id, ask.serial)
    if other is not None and other.deleted_at is None and other is not device:
        _note_twins(ask, device, other, book)
        return
    device.serial, device.claimed_serial = ask.serial, ""


def _issue_session(device: Device, book: Book, now: dt.datetime, *, rotated_from: str | None = None) -> str:
    secret = new_token(SESSION_PREFIX)
    book.new_sessions.append(
        SessionToken(
            token_hash=hash_token(secret),
            device_id=device.id,
            issued_at=now,
            expires_at=now + SESSION_IDLE,
            rotated_from_id=rotated_from,
        )
    )
    return secret


def _grant(ask: Ask, device: Device, book: Book, fresh: str | None, how: How) -> Grant:
    device.epoch += 1
    device.address = ask.address
    device.instance = ask.instance
    if not ask.serial and ask.claimed_serial:
        device.claimed_serial = ask.claimed_serial
    device.agent_version = ask.agent
    device.local_address, device.local_listening = ask.local, ask.local_listening
    device.chip = ask.chip or device.chip
    device.firmware = ask.firmware or device.firmware
    book.changed_devices[device.id] = device
    return Grant(ask, device, device.epoch, fresh, how)
