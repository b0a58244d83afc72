"""Django's internal calls as the daemon makes them: JSON in the envelope, each kind of call in a queue of its own.

Nothing that strangers do takes what known callers, agents and heartbeats need: the kinds share neither places nor
connections. It does not know sessions, batching or when to retry. Every failure to get a proper answer is
ControlUnavailable.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import orjson

from tunnel.contract import (
    CONTRACT_VERSION,
    H_CONTRACT,
    Admitted,
    Authorized,
    AuthorizeRequest,
    Credential,
    Forbidden,
    Heartbeat,
    HeartbeatAnswer,
    Refused,
    TunnelEvent,
)
from tunnel.daemon.control.calls import Calls, Overcrowded
from tunnel.daemon.control.http_client import Answer, Origin, Unanswered, request

_OWN_PLACES: Final = 2
"""For heartbeats and events, one call of each at a time; and for admissions, of which there is one at a time."""
_KNOWN_PLACES: Final = 16
_STRANGERS_PLACES: Final = 6
_QUEUE: Final = 1024
"""Look-ups of a kind that wait; a look-up takes milliseconds, so more would not be served in time anyway."""
_ELSEWHERE: Final = 8, 256
"""Places and queue of calls to other daemons."""


class ControlUnavailable(Exception):
    """No proper answer: not reachable, too slow, an error, or an answer that makes no sense.

    `status` and `code` are the API's where it answered; `retry_after` is its word, in seconds. `permanent` says that
    the same call would be refused again (so an event may be dropped).
    """

    def __init__(
        self, text: str, *, status: int | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def permanent(self) -> bool:
        return self.status in (400, 413, 422)


class ControlPlane:
    """The API's `/internal/*`. An async context manager: its connections are open within."""

    def __init__(self, api_url: str, secret: str, *, call_seconds: float) -> None:
        self._api = Origin.of(api_url)
        self._headers = {
            "Authorization": f"Bearer {secret}",
            H_CONTRACT: str(CONTRACT_VERSION),
            "Content-Type": "application/json",
        }

        def calls(name: str, places: int, queue: int) -> Calls:
            return Calls(name, places=places, queue=queue, seconds=call_seconds)

        self._vital = calls("heartbeats and events", _OWN_PLACES, _OWN_PLACES)
        self._admissions = calls("admissions", _OWN_PLACES, _OWN_PLACES)
        self._known = calls("known callers", _KNOWN_PLACES, _QUEUE)
        self._strangers = calls("unknown callers", _STRANGERS_PLACES, _QUEUE)
        self._elsewhere = calls("other daemons", *_ELSEWHERE)

    def __repr__(self) -> str:
        return f"<ControlPlane {self._api.authority} {self._known!r} {self._strangers!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for calls in (self._vital, self._admissions, self._known, self._strangers, self._elsewhere):
            await calls.close()

    async def authenticate(self, node: str, credentials: Sequence[Credential]) -> list[Admitted | Refused]:
        """One answer for each of 1 to 256 credentials, in order. Raises ControlUnavailable."""
        data = await self._post(
            self._admissions, "/internal/tunnel/authenticate", {"node": node, "credentials": list(credentials)}
        )
        results = data.get("results") if isinstance(data, dict) else None
        if not isinstance(results, list) or len(results) != len(credentials):
            raise ControlUnavailable("authenticate: not one answer a credential")
        for result in results:
            self._check_result(result)
        return results

    @staticmethod
    def _check_result(result: object) -> None:
        try:
            if not isinstance(result, dict):
                raise TypeError
            if result["ok"] is True:
                _ = result["device_id"] + result["user_id"]
                _ = result["epoch"] + 0
            else:
                _ = result["code"] + result["message"]
                _ = result["status"] + 0
        except (KeyError, TypeError):
            raise ControlUnavailable("authenticate: an answer without the agreed keys") from None

    async def authorize(
        self, asked: AuthorizeRequest, *, known: bool = False, party: str = ""
    ) -> Authorized | Forbidden:
        """Whether a caller may reach a device. Raises ControlUnavailable, as for an answer that lacks keys.

        Args:
            known: its credential was good before; it waits behind no stranger's.
            party: its user, or the address of an unknown one: when many wait, each party has its turn.
        """
        calls = self._known if known else self._strangers
        data = await self._post(calls, "/internal/authorize", asked, party=party, again=True)
        try:
            if data["allowed"] is True:
                texts = data["device_id"] + data["session"] + data["node_url"] + data["user_id"] + data["login"]
                _ = texts + "", data["epoch"] + data["body_max"] + data["ttl"] + 0
            else:
                _ = data["code"] + data["message"] + "", data["status"] + 0
        except (KeyError, TypeError):
            raise ControlUnavailable("authorize: an answer without the agreed keys") from None
        answer: Authorized | Forbidden = data
        return answer

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        """Say that this node lives. Raises ControlUnavailable."""
        data = await self._post(self._vital, "/internal/tunnel/heartbeat", heartbeat, again=True)
        try:
            close = [
                {"session": str(one["session"]), "code": int(one["code"]), "reason": str(one["reason"])}
                for one in data["close"]
            ]
            send = bool(data["send_sessions"])
        except (KeyError, TypeError, ValueError):
            raise ControlUnavailable("heartbeat: an answer without the agreed keys") from None
        return HeartbeatAnswer(close=close, send_sessions=send)  # type: ignore[typeddict-item]  # built just above

    async def events(self, node: str, events: Sequence[TunnelEvent]) -> None:
        """Tell what happened to sessions. Raises ControlUnavailable."""
        await self._post(self._vital, "/internal/tunnel/events", {"node": node, "events": list(events)})

    async def close_elsewhere(self, node_url: str, session: str, code: int, *, handed_over: bool = False) -> None:
        """Close a session on another daemon, `handed_over`: when its streams have ended; gone already is as good.

        Raises ControlUnavailable.
        """
        query = f"code={code}&handover=1" if handed_over else f"code={code}"
        try:
            daemon = Origin.of(node_url)
        except ValueError as error:
            raise ControlUnavailable(str(error)) from None
        data = request(daemon, "DELETE", f"/internal/session/{session}?{query}", self._headers, b"")
        answer = await _answered(self._elsewhere.call(daemon, data))
        if answer.status != 404:
            _data(answer)

    async def _post(self, calls: Calls, path: str, body: Any, *, party: str = "", again: bool = False) -> Any:
        data = request(self._api, "POST", path, self._headers, orjson.dumps(body))
        return _data(await _answered(calls.call(self._api, data, party=party, again=again)))


async def _answered(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except Overcrowded as error:
        raise ControlUnavailable(str(error), code="OVERLOADED", retry_after=1) from None
    except Unanswered as error:
        raise ControlUnavailable(str(error)) from error


def _data(answer: Answer) -> Any:
    try:
        body = orjson.loads(answer.body)
    except ValueError:
        raise ControlUnavailable(f"answered {answer.status} without JSON", status=answer.status) from None
    if answer.status == 200 and isinstance(body, dict) and body.get("success") is True:
        return body.get("data")
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    raise ControlUnavailable(
        f"answered {answer.status} {code or ''}".rstrip(),
        status=answer.status,
        code=code if isinstance(code, str) else None,
        retry_after=_seconds(answer.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> int | None:
    try:
        value = math.ceil(float(text or ""))
    except (ValueError, OverflowError):
        return None
    return value if 0 < value <= 3600 else None
