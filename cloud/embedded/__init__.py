"""A real PostgreSQL and a real Valkey from wheels, below ``var/``, for development and tests (product.md).

Who starts them: the supervisor (``make dev``), pytest (``cloud.embedded.pytest_plugin``) and a lone ``manage.py``
(``ensure``). Everybody else is handed their addresses as ``VISIONA_DB_*`` and ``VISIONA_REDIS_URL``, the same settings
that name real servers in production.
"""

from cloud.embedded.errors import EmbeddedError
from cloud.embedded.servers import Needs, needs
from cloud.embedded.session import ensure

__all__ = ["EmbeddedError", "Needs", "ensure", "needs"]
