"""A psycopg connection whose every wait for the server has an end."""

import select
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from django.db.backends.postgresql import base
from psycopg import errors, generators
from psycopg.abc import PQGen

T = TypeVar("T")

WRITES_REFUSED: Final = frozenset({"25006", "53100"})
"""read_only_sql_transaction: a primary that was demoted, or whose provider found its storage full; disk_full."""


class NoAnswer(psycopg.OperationalError):
    """The server did not answer before the deadline. The connection is closed: nobody knows what it was doing."""


SESSION_LIMITS: Final = (
    "SELECT CASE WHEN pg_backend_pid() = %s THEN set_config('statement_timeout', %s, false)"
    " || set_config('lock_timeout', %s, false) END"
)
"""Sets the session's timeouts; NULL, and nothing is set, behind a pooler.

None are sent at the start of a connection: PgBouncer refuses those. It gives each transaction a session of another's,
in which nothing may be left; it is known by the process id that it tells, which is not the server's.
"""


def session_limits(connection: psycopg.BaseConnection[Any], statement_ms: float, lock_ms: float) -> tuple[Any, ...]:
    """The parameters of SESSION_LIMITS."""
    return connection.info.backend_pid, f"{statement_ms:.0f}", f"{lock_ms:.0f}"


def local_limits(statement_ms: float, lock_ms: float) -> bytes:
    """`LimitedConnection.limits`."""
    return f"SET LOCAL statement_timeout = {statement_ms:.0f};SET LOCAL lock_timeout = {lock_ms:.0f};".encode()


class LimitedConnection(psycopg.BaseConnection[Any]):
    """What a connection adds, threads' or asyncio's, that may go through a pooler: limits that go with transactions."""

    limits: bytes = b""
    """`SET LOCAL` commands that begin each transaction, where a pooler stands before the server; else the session's."""

    def _start_query(self) -> PQGen[None]:
        """As psycopg's, which begins a transaction before its first statement; the limits go with that."""
        idle = self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if not self.limits or self._autocommit or not idle:
            yield from super()._start_query()
            return
        self.pgconn.send_query(self._get_tx_start_command() + b";" + self.limits)
        last = (yield from generators.execute(self.pgconn))[-1]
        if last.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise errors.error_from_result(last)


class DeadlineConnection(LimitedConnection, psycopg.Connection[Any]):
    """A connection with a deadline in seconds for each exchange with the server; None: wait as long as it takes."""

    deadline: float | None = None
    on_no_answer: Callable[[], None] | None = None
    """Called when a deadline has passed, before NoAnswer is raised."""
    on_writes_refused: Callable[[], None] | None = None
    """Called when the server refuses a write, before its error is raised."""
    generation: int = 0
    """The pool's generation when this connection was made."""
    born: float = 0.0
    """When the connection was made (monotonic seconds)."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's; without a `timeout` of the caller's own, the deadline bounds it. Raises NoAnswer."""
        own = timeout is None and self.deadline is not None
        try:
            return super().wait(gen, interval, self.deadline if own else timeout)
        except errors._WaitTimeout:  # noqa: SLF001 - documented on Connection.wait, yet without a public name
            if not own:
                raise
            self.pgconn.finish()
            if self.on_no_answer is not None:
                self.on_no_answer()
            raise NoAnswer("no answer before the deadline") from None
        except psycopg.Error as error:
            if error.sqlstate in WRITES_REFUSED and self.on_writes_refused is not None:
                self.on_writes_refused()
            raise

    def set_limits(self, *, statement_ms: float, lock_ms: float) -> None:
        """The server's own timeouts: the session's, in one exchange; each transaction's behind a pooler."""
        row = self.execute(SESSION_LIMITS, session_limits(self, statement_ms, lock_ms)).fetchone()
        if row is not None and row[0] is None:
            self.limits = local_limits(statement_ms, lock_ms)
            limited: Any = LimitedCursor
            self.cursor_factory = limited

    def is_quiet(self) -> bool:
        """Whether the idle connection is unbroken, found without asking the server.

        A server that has gone, or that has something to say to an idle connection, makes its socket readable.
        """
        if self.closed or self.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)


_Cursor: Any = base.Cursor  # which the stubs know by psycopg2's


class LimitedCursor(_Cursor):  # type: ignore[misc]  # see above
    """Django's, for a connection with limits of its own: they come with each statement that is its own transaction.

    Several statements in one message are one transaction, and one exchange with the server.
    """

    connection: DeadlineConnection

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """As psycopg's."""
        connection = self.connection
        alone = connection.autocommit and connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if not (alone and connection.limits and isinstance(query, str)):
            return super().execute(query, params, **kwargs)
        super().execute(connection.limits.decode() + query, params, **kwargs)
        for _ in range(connection.limits.count(b";")):
            self.nextset()
        return self
