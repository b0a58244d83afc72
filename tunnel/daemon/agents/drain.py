"""How a daemon's tunnels end in order: paced, each as soon as its own streams have ended.

An agent with the feature `handover` connects to another daemon when it is told to go, and its tunnel here takes new
streams until that has been registered. Any other tunnel takes none from then on. Contract: docs/closing.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from tunnel.contract import CLOSE_RESTART, FEATURE_HANDOVER
from tunnel.daemon.agents.session import TunnelSession

_TURN_SECONDS: Final = 0.05
_AT_LEAST: Final = 5
"""Tunnels told to go in a turn, at least: a hundred a second. Of very many all are told within half of the grace."""
_TAKING_OVER_SECONDS: Final = 2.0
"""How long a tunnel without streams waits for its successor: its agent may find no other daemon."""
_LOOK_SECONDS: Final = 60.0
"""Between two looks for tunnels whose stream ids run out: 134 million are left then."""


class Drain:
    """The tunnels that leave. `spawn` starts work that outlives a call."""

    def __init__(self, spawn: Callable[..., None], *, grace: float) -> None:
        self._spawn: Callable[[Callable[..., Awaitable[None]], Any], None] = spawn
        self._grace = grace
        self._leaving: dict[TunnelSession, float] = {}  # since when

    def __len__(self) -> int:
        return len(self._leaving)

    def handed_over(self, session: TunnelSession) -> None:
        """Its successor is registered: it takes no new streams, finishes those that it has, and is closed with 1012."""
        if session.leaving:
            return
        session.parting = session.leaving = True
        if session not in self._leaving:  # else the drain looks after it
            session.connection.go_away(0)
            self._spawn(self._finish, session)

    def worn_out(self, session: TunnelSession) -> None:
        """Its stream ids run out, and none comes twice: let the agent connect anew before they have (yamux.md §3)."""
        if session.parting:
            return
        if FEATURE_HANDOVER in session.identity.features:
            session.parting = True
            session.connection.go_away(0)
        else:
            self.handed_over(session)

    async def watch(self, sessions: Callable[[], list[TunnelSession]]) -> None:
        """Once a minute: whose ids run out."""
        while True:
            await trio.sleep(_LOOK_SECONDS)
            for session in sessions():
                if session.connection.session.ids_running_out:
                    self.worn_out(session)

    async def _finish(self, session: TunnelSession) -> None:
        deadline = trio.current_time() + self._grace
        while trio.current_time() < deadline:
            if not session.connection.streams or session.connection.end_reason is not None:
                break
            await trio.sleep(_TURN_SECONDS)
        session.close(CLOSE_RESTART, "handed over")

    async def all(self, sessions: list[TunnelSession], *, code: int, reason: str, grace: float) -> None:
        """Let all of them go; return when all are closed. Bounded by who calls it."""
        waiting = deque(sessions)
        each_turn = max(_AT_LEAST, math.ceil(len(sessions) * _TURN_SECONDS / max(grace / 2, _TURN_SECONDS)))
        patience = min(_TAKING_OVER_SECONDS, grace / 2)
        while waiting or self._leaving:
            for _ in range(min(each_turn, len(waiting))):
                self._tell(waiting.popleft())
            now = trio.current_time()
            for session, since in list(self._leaving.items()):
                self._look(session, now - since >= patience)
                if session.leaving and not session.connection.streams:
                    session.close(code, reason)
                if session.closing or session.connection.end_reason is not None:
                    del self._leaving[session]
            await trio.sleep(_TURN_SECONDS)

    def _tell(self, session: TunnelSession) -> None:
        session.parting = True
        if FEATURE_HANDOVER not in session.identity.features:
            session.leaving = True
        session.connection.go_away(0)
        self._leaving[session] = trio.current_time()

    @staticmethod
    def _look(session: TunnelSession, long_enough: bool) -> None:
        if long_enough and not session.connection.streams:
            session.leaving = True  # nobody came for it
