"""The writing half of a connection: one task that rests while there is nothing to say, and what is written without it.

Level-triggered: it asks the core for the next batch whenever the transport can take one. Where a socket takes a message
at once no task need wake for it: what one turn of work leaves to say (`Turn`) goes out at its end. Only what the socket
does not take is the task's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from tunnel.protocol.session import Session
from tunnel.protocol.stream import MuxStream
from tunnel.runtime.transport import Transport
from tunnel.runtime.websocket import SocketTransport

_AT_ONCE: Final = 4  # messages that are written before other tasks have their turn


class Turn(threading.local):
    """Work between two awaits; at its end all connections that have something to say since then write it.

    So the requests that came together go out together. It cannot be entered again before it is left.
    """

    def __init__(self) -> None:
        self.waiting: list[Writer] | None = None
        """Who has something to say; None outside of a turn."""

    def __enter__(self) -> None:
        self.waiting = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiting, self.waiting = self.waiting, None
        for writer in waiting or ():
            writer.write_now()


TURN: Final = Turn()
"""The turn of this thread."""


class Writer:
    """What writes for one session. `run` it once; `dispatch` is told the streams that a batch has changed."""

    __slots__ = ("_dispatch", "_fault", "_limit", "_session", "_socket", "_task", "_told", "_transport", "since")

    def __init__(
        self, session: Session, transport: Transport, limit: int, dispatch: Callable[[list[MuxStream]], None]
    ) -> None:
        self.since: float | None = None
        """When the message that is being written was begun; None: nothing is."""
        self._session = session
        self._transport = transport
        self._socket = transport if isinstance(transport, SocketTransport) else None
        self._limit = limit
        self._dispatch = dispatch
        self._task: Task | None = None  # parked: nothing to say
        self._told = False  # waits for the end of the turn
        self._fault: Exception | None = None  # of what was written without the task, which is to raise it

    def __repr__(self) -> str:
        return f"<Writer {'rests' if self._task is not None else 'busy'}>"

    def kick(self) -> None:
        """Have written what there is to say, if the task rests: at the end of this turn, else by the task."""
        task = self._task
        if task is None or self._told or not (self._session.wants_to_send or self._session.ending is not None):
            return
        waiting = TURN.waiting
        if waiting is not None and self._socket is not None:
            self._told = True
            waiting.append(self)
        else:
            self._task = None
            reschedule(task)

    def write_now(self) -> None:
        """Write what there is to say as far as the socket takes it; the rest is the task's. Raises nothing."""
        self._told = False
        task, self._task = self._task, None  # so that nobody begins another message meanwhile
        if task is None:
            return
        try:
            done = self._socket is not None and self._written(self._socket)
        except Exception as error:  # noqa: BLE001 - the tunnel's own task raises it: the caller may serve others
            self._fault = error
            done = False
        if done:
            self._task = task
        else:
            reschedule(task)

    def _written(self, socket: SocketTransport) -> bool:
        """Whether all is said."""
        session = self._session
        for _ in range(_AT_ONCE):
            data = session.data_to_send(self._limit, trio.current_time())
            if touched := session.take_touched():
                self._dispatch(touched)
            if data and not socket.send_now(data):
                return False
            if not session.wants_to_send:
                return session.ending is None
        return False

    async def run(self) -> None:
        """Write until the session has ended and all is said. Raises trio.BrokenResourceError, ClosedResourceError."""
        session, transport, limit = self._session, self._transport, self._limit
        while True:
            if self._fault is not None:
                raise self._fault
            now = trio.current_time()
            if self._socket is not None and self._socket.unfinished:
                self.since = now
                await self._socket.finish()
                self.since = None
            data = session.data_to_send(limit, now)
            touched = session.take_touched()
            if touched:
                self._dispatch(touched)
            if data:
                self.since = now
                await transport.send_all(data)
                self.since = None
            elif session.ending is not None:
                return
            # Unless a listener has spoken while the touched streams were told.
            elif not (touched and session.wants_to_send):
                await self._rest()

    async def _rest(self) -> None:
        def abort(_: object) -> Abort:
            self._task = None
            return Abort.SUCCEEDED

        self._task = current_task()
        await wait_task_rescheduled(abort)
