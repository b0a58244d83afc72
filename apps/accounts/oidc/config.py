"""What the settings say of the OpenID provider."""

from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings

CALLBACK_PATH: Final = "/api/auth/oidc/callback"


@dataclass(frozen=True, slots=True)
class Config:
    """One provider.

    Attributes:
        issuer: without a trailing slash; the provider's own spelling stands in its discovery document.
        client_id: ours at the provider; empty: bearer JWTs alone, nobody logs in through us.
        audiences, parties: what `aud` and `azp` of a bearer JWT may be; never both empty.
        redirect_uris: the front-end pages that a login may end at, exactly.
        email_claim: where the e-mail stands; with `_verified`, whether it is verified.
        timeout: seconds for each answer of the provider.
    """

    issuer: str
    client_id: str
    client_secret: str
    scopes: str
    audiences: frozenset[str]
    parties: frozenset[str]
    redirect_uris: tuple[str, ...]
    callback: str
    algorithms: tuple[str, ...]
    email_claim: str
    timeout: float


def config() -> Config | None:
    """The provider that is configured; None if there is none."""
    values: dict[str, Any] = settings.VISIONA
    issuer: str = values["OIDC_ISSUER"]
    if not issuer:
        return None
    client_id: str = values["OIDC_CLIENT_ID"]
    audiences, parties = frozenset(values["OIDC_AUDIENCE"]), frozenset(values["OIDC_AUTHORIZED_PARTIES"])
    public: str = values["PUBLIC_URL"]
    return Config(
        issuer=issuer.rstrip("/"),
        client_id=client_id,
        client_secret=values["OIDC_CLIENT_SECRET"],
        scopes=values["OIDC_SCOPES"],
        audiences=audiences if audiences or parties else frozenset({client_id}),
        parties=parties,
        redirect_uris=values["OIDC_REDIRECT_URIS"] or (public + "/",),
        callback=public + CALLBACK_PATH,
        algorithms=values["OIDC_ALGORITHMS"],
        email_claim=values["OIDC_EMAIL_CLAIM"],
        timeout=values["OIDC_TIMEOUT_SECONDS"],
    )
