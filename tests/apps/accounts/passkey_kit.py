"""An authenticator in software: it makes passkeys and signs as a browser would tell it, or as no browser should."""

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from django.utils import timezone
from fido2.cose import ES256
from fido2.utils import websafe_encode
from fido2.webauthn import Aaguid, AttestationObject, AttestedCredentialData, AuthenticatorData

from apps.accounts.factors import passkeys
from apps.accounts.factors.webauthn import Answer
from apps.accounts.models import User
from apps.common.actor import Actor

ORIGIN = "http://localhost:3721"


@dataclass
class Authenticator:
    origin: str = ORIGIN
    counter: int = 0
    """Of signatures; 0 and never more: it does not count, as synced passkeys do not."""
    counts: bool = True
    id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def made(self, options: dict[str, Any], **client: Any) -> dict[str, Any]:
        """What `navigator.credentials.create` brings back; `client` changes what the browser says of itself."""
        public = ES256.from_cryptography_key(self.key.public_key())
        attested = AttestedCredentialData.create(Aaguid.NONE, self.id, public)
        data = self._data(options["rp"]["id"], 0x41, attested)
        answer = {
            "clientDataJSON": self._client("webauthn.create", options, client),
            "attestationObject": AttestationObject.create("none", AuthenticatorData(data), {}),
        }
        return self._told(answer)

    def signed(self, options: dict[str, Any], *, flags: int = 0x01, **client: Any) -> dict[str, Any]:
        """What `navigator.credentials.get` brings back."""
        told = self._client("webauthn.get", options, client)
        data = self._data(options["rpId"], flags)
        signature = self.key.sign(data + hashlib.sha256(told).digest(), ec.ECDSA(SHA256()))
        return self._told({"clientDataJSON": told, "authenticatorData": data, "signature": signature})

    def _client(self, kind: str, options: dict[str, Any], more: dict[str, Any]) -> bytes:
        told = {"type": kind, "challenge": options["challenge"], "origin": self.origin, "crossOrigin": False}
        return json.dumps({**told, **more}).encode()

    def _data(self, rp_id: str, flags: int, attested: bytes = b"") -> bytes:
        self.counter += self.counts
        return hashlib.sha256(rp_id.encode()).digest() + bytes([flags]) + self.counter.to_bytes(4, "big") + attested

    def _told(self, answer: dict[str, bytes]) -> dict[str, Any]:
        own = websafe_encode(self.id)
        response = {name: websafe_encode(value) for name, value in answer.items()}
        return {
            "id": own,
            "rawId": own,
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": response,
        }


def passkey_on(user: User, **how: Any) -> tuple[Authenticator, list[str]]:
    """A passkey of the user's, and the recovery codes if it is their first factor."""
    held = Authenticator(**how)
    answer = Answer("register", held.made(passkeys.options(user=user)))
    _passkey, _factor, codes = passkeys.register(
        actor=Actor.system(), user=user, name="telephone", answer=answer, now=timezone.now()
    )
    return held, codes
