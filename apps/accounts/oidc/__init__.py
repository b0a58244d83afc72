"""OpenID Connect: logging in at a provider of the operator's choice, and its JWTs as credentials (docs/identity.md).

config    what the settings say
fetch     one bounded HTTP exchange with the provider
provider  its discovery document and keys, kept and renewed
claims    a signed token → an identity; no network, no database
verify    the same, with keys fetched anew where those at hand do not fit
linking   an identity → a user: found, refreshed, linked or made
owner     identities linked and unlinked by their owner; an issuer moved
bearer    a JWT in the place of a login token
flow      the code flow with PKCE, state and nonce; what it remembers lies in Redis
"""
