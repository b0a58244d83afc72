"""How passwords are hashed."""

from django.contrib.auth.hashers import Argon2PasswordHasher


class Argon2Hasher(Argon2PasswordHasher):
    """Argon2id as OWASP's Password Storage Cheat Sheet sets it: 19 MiB, two passes, one lane.

    Django's default takes 100 MiB a login: a few dozen logins at once would exhaust a small machine.
    """

    time_cost = 2
    memory_cost = 19_456  # KiB
    parallelism = 1
