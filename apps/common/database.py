"""Giving a connection back before its time."""

from django.db import connections


def release_database() -> None:
    """Give the thread's connection back to the pool before a wait of unknown length: 64 threads share 16 of them.

    One within a transaction stays (tests).
    """
    for each in connections.all(initialized_only=True):
        if not each.in_atomic_block:
            each.close()
