"""A psycopg connection whose every wait for the server has an end."""

import select
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen

T = TypeVar("T")


class NoAnswer(psycopg.OperationalError):
    """The server did not answer before the deadline. The connection is closed: nobody knows what it was doing."""


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection with a deadline in seconds for each exchange with the server; None: wait as long as it takes."""

    deadline: float | None = None
    on_no_answer: Callable[[], None] | None = None
    """Told when a deadline has passed, before NoAnswer is raised."""
    born: float = 0.0
    """When it was made (monotonic clock)."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's; without a `timeout` of the caller's own, the deadline bounds it. Raises NoAnswer."""
        if timeout is not None or self.deadline is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.deadline)
        except errors._WaitTimeout:  # noqa: SLF001 - documented on Connection.wait, yet without a public name
            self.pgconn.finish()
            if self.on_no_answer is not None:
                self.on_no_answer()
            raise NoAnswer("no answer before the deadline") from None

    def is_quiet(self) -> bool:
        """Whether it lies idle as it should, without asking the server.

        A server that has gone, or that has something to say to an idle connection, makes its socket readable.
        """
        if self.closed or self.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)
