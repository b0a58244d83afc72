"""The provider's discovery document and keys: fetched when first needed, kept for an hour, renewed for an unknown key.

While the provider is away what is known goes on, for a day at most: a login here must not hang on every answer there.
Whoever sends tokens that no known key signed causes one fetch in `COOLDOWN_SECONDS` and no more, and holds one thread
by it: others wait for a fetch while it is young (`BRIEF_SECONDS`), since a provider that is well answers by then.
Logins, whose token the provider has just handed us, wait to its end, in places of their own. One per process.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from django.utils.translation import gettext_lazy as _
from joserfc.jwk import JWKRegistry, Key

from apps.accounts.oidc.config import Config
from apps.accounts.oidc.fetch import ProviderError, fetch_json
from apps.common.errors import DomainError

logger = structlog.get_logger(__name__)

FRESH_SECONDS: Final = 3600.0
STALE_SECONDS: Final = 24 * 3600.0
COOLDOWN_SECONDS: Final = 2.0
"""Between two fetches for tokens of strangers that no known key signed: so long a changed key can refuse them."""
LOGIN_COOLDOWN_SECONDS: Final = 0.5
"""The same for a token that the provider itself has just handed us: its key is there, so this is waited for."""
AWAY_SECONDS: Final = 30.0
"""Between two fetches that only renew what is known."""
BRIEF_SECONDS: Final = 0.5
"""So old may a fetch of another's be that a call waits for it; after that the provider is slow, and holds nobody."""
MAX_WAITING: Final = 16
"""Calls that wait for a fetch of another's, and as many logins; more are refused at once."""
DOWN_SECONDS: Final = 2.0
"""After a failed fetch, while nothing is known: calls of this time fail at once."""
MAX_KEYS: Final = 64
MIN_RSA_BITS: Final = 2048
_KEY_TYPES: Final = ("RSA", "EC", "OKP")  # never `oct`: a public key must not become a shared secret
_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")

Fetch = Callable[..., dict[str, Any]]


def unavailable() -> DomainError:
    """The refusal while the provider is needed and does not answer."""
    return DomainError("OVERLOADED", _("The identity provider cannot be reached right now; try again shortly."))


@dataclass(frozen=True, slots=True)
class Known:
    """What the provider told of itself. `issuer` is its own spelling, which tokens repeat exactly."""

    issuer: str
    endpoints: Mapping[str, str]
    auth_methods: tuple[str, ...]
    sends_iss: bool
    keys: tuple[Key, ...]
    at: float


class Provider:
    """One provider, shared by the threads of a process."""

    def __init__(
        self,
        issuer: str,
        seconds: float,
        *,
        fetch: Fetch = fetch_json,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._issuer = issuer
        self._seconds = seconds
        self._fetch = fetch
        self._clock = clock
        self._sleep = sleep
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._logins = threading.BoundedSemaphore(MAX_WAITING)
        self._lock = threading.Lock()
        self._began_at = float("-inf")  # whoever holds the lock, with it
        self._known: Known | None = None
        self._tried_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Provider {self._issuer} keys={len(self._known.keys) if self._known else None}>"

    def known(self, *, at_once: bool = False) -> Known:
        """What is known, renewed if it is old. Raises DomainError OVERLOADED while nothing is.

        Args:
            at_once: for a login that has come back from the provider; else strangers can ask for this.
        """
        found = self._known
        if found is not None and self._clock() - found.at < FRESH_SECONDS:
            return found
        if found is None:
            return self._renewed(pause=DOWN_SECONDS, at_once=at_once)
        return self._renewed(pause=AWAY_SECONDS, needed=False)

    def known_with(self, kid: str | None, *, at_once: bool = False) -> Known:
        """As `known`, asked anew if it has no key of that id (the provider may have changed its keys)."""
        found = self.known(at_once=at_once)
        if kid is None or any(key.kid == kid for key in found.keys):
            return found
        return self.newer_than(found, at_once=at_once)

    def newer_than(self, seen: Known, *, at_once: bool = False) -> Known:
        """What is known after `seen`, fetched if nobody did; `seen` itself where it may not be fetched yet.

        Raises DomainError OVERLOADED while another's fetch takes long: whether there is a newer key is not known then.
        """
        found = self._known
        if found is not None and found is not seen:
            return found
        pause = LOGIN_COOLDOWN_SECONDS if at_once else COOLDOWN_SECONDS
        return self._renewed(pause=pause, at_once=at_once, patient=at_once)

    def _renewed(self, *, pause: float, needed: bool = True, at_once: bool = False, patient: bool = False) -> Known:
        """Fetch, unless somebody did within `pause` seconds. Who comes meanwhile waits for the same fetch, or goes on
        with what is known (`needed` false); who is `patient` waits for the end of the pause instead.
        """
        asked_at = self._clock()
        if self._locked(needed, at_once):
            try:
                # `pause` counts from before the wait: what another thread fetched meanwhile is new enough.
                left = pause - (asked_at - self._tried_at)
                if patient and 0 < left <= pause:
                    self._sleep(left)
                if (patient and left <= pause) or left <= 0:
                    self._try()
            finally:
                self._lock.release()
        elif needed:
            raise unavailable()
        found = self._known
        if found is None or self._clock() - found.at > STALE_SECONDS:
            raise unavailable()
        return found

    def _locked(self, needed: bool, at_once: bool) -> bool:
        """Whether it is ours to fetch: at once, or after another's fetch, if that ends while we may wait for it."""
        if not self._lock.acquire(blocking=False):
            if not needed:
                return False
            whole = self._seconds + LOGIN_COOLDOWN_SECONDS
            seconds = whole if at_once else self._began_at + BRIEF_SECONDS - self._clock()
            places = self._logins if at_once else self._waiting
            if seconds <= 0 or not places.acquire(blocking=False):
                return False
            try:
                if not self._lock.acquire(timeout=seconds):
                    return False
            finally:
                places.release()
        self._began_at = self._clock()
        return True

    def _try(self) -> None:
        try:
            self._known = self.load()
        except ProviderError as error:
            logger.warning("oidc_provider_unavailable", issuer=self._issuer, error=str(error))
        except Exception:  # what it answers must not be a crash of every login, whatever it is
            logger.exception("oidc_provider_unreadable", issuer=self._issuer)
        finally:
            self._tried_at = self._clock()

    def load(self) -> Known:
        """What the provider tells of itself now, kept nowhere. Raises ProviderError."""
        deadline = self._clock() + self._seconds
        document = self._fetch("GET", self._issuer + "/.well-known/openid-configuration", seconds=self._seconds)
        issuer = document.get("issuer")
        if not isinstance(issuer, str) or issuer.rstrip("/") != self._issuer:
            raise ProviderError("the discovery document is of another issuer")
        endpoints = {name: document[name] for name in _ENDPOINTS if isinstance(document.get(name), str)}
        for name, url in endpoints.items():
            self._check(name, url)
        if "jwks_uri" not in endpoints:
            raise ProviderError("the discovery document names no jwks_uri")
        methods = document.get("token_endpoint_auth_methods_supported")
        return Known(
            issuer=issuer,
            endpoints=endpoints,
            auth_methods=tuple(methods) if isinstance(methods, list) else ("client_secret_basic",),
            sends_iss=document.get("authorization_response_iss_parameter_supported") is True,
            keys=read_keys(self._fetch("GET", endpoints["jwks_uri"], seconds=deadline - self._clock())),
            at=self._clock(),
        )

    def _check(self, name: str, url: str) -> None:
        """The document may name other hosts (Google's does), but over TLS; without TLS the issuer's own alone.

        So neither a bad document nor one altered on the way leads us to a service inside.
        """
        try:
            ours, theirs = urlsplit(self._issuer), urlsplit(url)
        except ValueError as error:
            raise ProviderError(f"{name} of the discovery document is no URL") from error
        same = (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ProviderError(f"{name} of the discovery document is no URL")
        if not same and not (ours.scheme == theirs.scheme == "https" and theirs.hostname):
            raise ProviderError(f"{name} of the discovery document leads elsewhere")


def read_keys(document: Mapping[str, Any]) -> tuple[Key, ...]:
    """The public signature keys of a JWKS; others, and those too weak or of unknown kinds, are passed over."""
    items = document.get("keys")
    if not isinstance(items, list):
        raise ProviderError("the key set holds no keys")
    found = []
    for item in items[:MAX_KEYS]:
        if not isinstance(item, dict) or item.get("kty") not in _KEY_TYPES or item.get("use", "sig") != "sig":
            continue
        if item["kty"] == "RSA" and len(str(item.get("n"))) * 6 < MIN_RSA_BITS:  # base64: six bits a character
            continue
        try:
            key = JWKRegistry.import_key(item)
            key.get_op_key("verify")  # the library reads some of it only now: a curve that it does not know, say
            found.append(key)
        except Exception as error:  # noqa: BLE001 - whatever it raises, this key alone is none
            logger.warning("oidc_key_passed_over", error=type(error).__name__, kid=ascii(item.get("kid"))[:100])
    return tuple(found)


@lru_cache(maxsize=8)
def _provider(issuer: str, seconds: float) -> Provider:
    return Provider(issuer, seconds)


def provider(config: Config) -> Provider:
    """The process's own of this configuration."""
    return _provider(config.issuer, config.timeout)
