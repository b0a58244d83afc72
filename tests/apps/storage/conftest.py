from tests.apps.stores import local, moto, store

__all__ = ["local", "moto", "store"]
