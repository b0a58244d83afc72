from tests.apps.stores import local, store

__all__ = ["local", "store"]
