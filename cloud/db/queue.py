"""The worker's own connections to its queue, procrastinate's: with the server's timeouts, as all others have them.

A job is deferred on Django's connection, in the transaction of what causes it; a worker takes its jobs by asyncio, on
connections of a pool that procrastinate makes. Named by `PROCRASTINATE_ON_APP_READY`.
"""

from functools import partial
from typing import Any, Self

import psycopg
from django.db import connections
from procrastinate import App
from procrastinate.contrib.django.django_connector import DjangoConnector
from procrastinate.contrib.django.utils import connector_params
from procrastinate.psycopg_connector import PsycopgConnector
from psycopg_pool import AsyncConnectionPool

from cloud.db.base import limits_of
from cloud.db.connection import SESSION_LIMITS, LimitedConnection, local_limits, session_limits


class QueueConnection(LimitedConnection, psycopg.AsyncConnection[Any]):
    """A connection of the worker (one of the pool's, or the one that listens) that has its timeouts once connected."""

    @classmethod
    async def connect(  # type: ignore[override]  # one argument more
        cls, conninfo: str = "", *, limits_ms: tuple[float, float], **kwargs: Any
    ) -> Self:
        """As psycopg's; `limits_ms` are those of a statement and of a lock. Raises psycopg.Error."""
        connection = await super().connect(conninfo, **kwargs)
        try:
            cursor = await connection.execute(SESSION_LIMITS, session_limits(connection, *limits_ms))
            row = await cursor.fetchone()
            await connection.commit()
        except BaseException:
            await connection.close()
            raise
        if row is not None and row[0] is None:
            connection.limits = local_limits(*limits_ms)
        return connection


class QueueConnector(DjangoConnector):
    """Django's, whose worker has connections of ours."""

    def get_worker_connector(self) -> PsycopgConnector:
        """As procrastinate's."""
        limits = limits_of(connections[self.alias].settings_dict["OPTIONS"])
        pool: Any = partial(AsyncConnectionPool, connection_class=QueueConnection)
        return PsycopgConnector(pool_factory=pool, kwargs={**connector_params(self.alias), "limits_ms": limits})


def use(app: App) -> None:
    """Have the app's worker take its jobs on these."""
    app.connector = app.job_manager.connector = QueueConnector()
