"""The database backend `cloud.db`: Django's own for PostgreSQL on our pool and deadlines."""

import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base
from django.db.backends.postgresql.operations import DatabaseOperations as PostgresOperations
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from django.db.backends.postgresql.schema import DatabaseSchemaEditor as PostgresSchemaEditor
from psycopg.types.datetime import TimestamptzLoader

from apps.common.breaker import Breaker
from cloud.db.connection import DeadlineConnection
from cloud.db.pool import Pool

_OWN_OPTIONS: Final = ("deadline", "pool_min", "pool_max", "statement_timeout_ms", "lock_timeout_ms")
_pools: dict[tuple[Any, ...], Pool] = {}
_pools_lock = threading.Lock()


class DatabaseSchemaEditor(PostgresSchemaEditor):
    """Changes of the schema take the time they take.

    One within a transaction gives up soon where it cannot have its lock: whoever comes behind it waits too. One outside
    (an index made concurrently) keeps nobody waiting, and waits for the transactions of others however long they are.
    """

    connection: "DatabaseWrapper"
    atomic_migration: bool

    def __enter__(self) -> Self:
        self.connection.make_patient()
        if not self.atomic_migration:
            self.connection.set_lock_timeout(0)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if not self.atomic_migration and kind is None:
            self.connection.set_lock_timeout(limits_of(self.connection.settings_dict["OPTIONS"])[1])


class DatabaseOperations(PostgresOperations):
    """Django's, but emptying tables takes the time it takes."""

    connection: "DatabaseWrapper"

    def execute_sql_flush(self, sql_list: Iterable[str]) -> None:
        self.connection.make_patient()
        super().execute_sql_flush(sql_list)


class DatabaseWrapper(base.DatabaseWrapper):
    """One thread's connection, taken from the process's pool and given back when Django closes it."""

    SchemaEditorClass = DatabaseSchemaEditor
    ops_class = DatabaseOperations
    connection: DeadlineConnection | None

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        for name in _OWN_OPTIONS:
            params.pop(name, None)
        params.setdefault("connect_timeout", 2)  # libpq's least
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> DeadlineConnection:
        self.isolation_level = IsolationLevel.READ_COMMITTED
        if self.alias == NO_DB_ALIAS:
            patient = {**conn_params, "connect_timeout": 10}
            return DeadlineConnection.connect(**patient)
        self._home = _pool_of(self, conn_params)
        connection = self._home.acquire()
        # Behind a pooler a cursor of the server would be another session's with the next transaction.
        self.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = bool(connection.limits)
        return connection

    def create_cursor(self, name: str | None = None) -> Any:
        """As Django's, which however has each cursor copy the connection's adapters for its own loader of moments.

        It wraps psycopg's in Python to put its time zone in the session's place. A session of ours has UTC, and
        psycopg's own, in C where psycopg is, gives the same `datetime.UTC` then: it is the connection's (`_pool_of`).
        """
        connection: Any = self.connection
        if name is None:
            return connection.cursor()
        named: Any = base.ServerSideCursor  # which the stubs know by psycopg2's
        return named(connection, name=name, scrollable=False, withhold=connection.autocommit)

    def _close(self) -> None:
        connection = self.connection
        if connection is None:
            return
        if self.alias == NO_DB_ALIAS:
            connection.close()
            return
        self.connection = None
        keep = connection.deadline == self.settings_dict["OPTIONS"].get("deadline")
        if keep and not connection.closed and not connection.autocommit:
            keep = _reset(connection)
        self._home.release(connection, keep=keep)

    def make_patient(self) -> None:
        """Lifts the deadline for the rest of this connection's life, which then ends when Django closes it.

        For work that takes long and has nobody waiting: migrations, flushes, retention.
        """
        self.ensure_connection()
        if self.connection is not None and self.connection.deadline is not None:
            self.connection.deadline = None
            if self.connection.limits:
                self.connection.limits = b""
                return
            with self.cursor() as cursor:
                cursor.execute("SET statement_timeout = 0")

    def set_lock_timeout(self, milliseconds: float) -> None:
        """Set the lock timeout of this session, until it is closed or this is called again. Behind a pooler a patient
        session has none."""
        if self.settings_dict["DISABLE_SERVER_SIDE_CURSORS"]:
            return
        with self.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {milliseconds:.0f}")

    def takes_writes(self) -> bool:
        """Ask the server whether it takes writes. If it is read-only, its connection is dropped: the next one may reach
        another server. Raises Error."""
        with self.cursor() as cursor:
            cursor.execute("SELECT current_setting('transaction_read_only')")
            read_only = cursor.fetchone() == ("on",)
        if read_only:
            self._home.writes_refused()
        return not read_only and self._home.writable

    def close_pool(self) -> None:
        """Closes the idle connections to this database, e.g. before it is dropped, or before a fork."""
        pool = _pools.get(_key(self))
        if pool is not None:
            pool.forget_idle()


def _reset(connection: DeadlineConnection) -> bool:
    """Bring a connection back to autocommit. Returns whether that worked."""
    try:
        if connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return False
        connection.autocommit = True
    except psycopg.Error:
        return False
    return True


def limits_of(options: Mapping[str, Any]) -> tuple[float, float]:
    """The timeouts of a statement and of a lock, in milliseconds.

    An alive server cancels just before the client's deadline, so that only a dead one runs into it.
    """
    deadline = options.get("deadline")
    statement, lock = options.get("statement_timeout_ms", 0), options.get("lock_timeout_ms", 0)
    if deadline:
        statement = min(statement or deadline * 800, deadline * 800)
        lock = min(lock or deadline * 700, deadline * 700)
    return statement, lock


def _key(wrapper: DatabaseWrapper) -> tuple[Any, ...]:
    named = wrapper.settings_dict
    return named["HOST"], named["PORT"], named["NAME"], named["USER"]


def _pool_of(wrapper: DatabaseWrapper, conn_params: dict[str, Any]) -> Pool:
    options = wrapper.settings_dict["OPTIONS"]
    deadline = options.get("deadline")
    statement, lock = limits_of(options)

    def connect() -> DeadlineConnection:
        connection = DeadlineConnection.connect(**{**conn_params, "autocommit": True})
        connection.deadline = deadline
        connection.adapters.register_loader("timestamptz", TimestamptzLoader)
        try:
            connection.set_limits(statement_ms=statement, lock_ms=lock)
        except BaseException:
            connection.close()
            raise
        return connection

    key = _key(wrapper)
    with _pools_lock:
        if key not in _pools:
            _pools[key] = Pool(
                connect,
                low=options.get("pool_min", 0),
                high=options.get("pool_max", 16),
                wait=deadline or 30.0,
                breaker=Breaker(),
            )
        return _pools[key]
