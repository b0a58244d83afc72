"""How passwords are hashed."""

from functools import partial
from typing import Any

from django.contrib.auth.hashers import Argon2PasswordHasher

from apps.accounts.hashing import turns


class Argon2Hasher(Argon2PasswordHasher):
    """Argon2id as OWASP's Password Storage Cheat Sheet sets it: 19 MiB, two passes, one lane.

    Django's default takes 100 MiB a login: a few dozen logins at once would exhaust a small machine. Each hash waits
    for its turn; DomainError OVERLOADED where too many do.
    """

    time_cost = 2
    memory_cost = 19_456  # KiB
    parallelism = 1

    def encode(self, password: str, salt: str) -> Any:
        return turns().run(partial(super().encode, password, salt))

    def verify(self, password: str, encoded: str) -> Any:
        return turns().run(partial(super().verify, password, encoded))
