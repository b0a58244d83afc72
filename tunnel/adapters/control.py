"""Django's internal calls as the daemon makes them: httpx on Trio, one bounded client, JSON in the envelope.

It does not know sessions, batching or when to retry. Every failure to get a proper answer is ControlUnavailable.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import httpx
import orjson
import trio

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

_MAX_ANSWER: Final = 4 * 1024 * 1024


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
        self._seconds = call_seconds
        self._client = httpx.AsyncClient(
            base_url=api_url,
            headers={
                "Authorization": f"Bearer {secret}",
                H_CONTRACT: str(CONTRACT_VERSION),
                "Content-Type": "application/json",
            },
            timeout=call_seconds,
            # The API or a proxy before it may close an idle connection just as it is used again: none is kept for long.
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=1.0),
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def authenticate(self, node: str, credentials: Sequence[Credential]) -> list[Admitted | Refused]:
        """One answer for each of 1 to 256 credentials, in order. Raises ControlUnavailable."""
        data = await self._post("/internal/tunnel/authenticate", {"node": node, "credentials": list(credentials)})
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

    async def authorize(self, asked: AuthorizeRequest) -> Authorized | Forbidden:
        """Whether a caller may reach a device. Raises ControlUnavailable, as for an answer that lacks keys."""
        data = await self._post("/internal/authorize", asked)
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
        data = await self._post("/internal/tunnel/heartbeat", heartbeat)
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
        await self._post("/internal/tunnel/events", {"node": node, "events": list(events)})

    async def close_elsewhere(self, node_url: str, session: str, code: int, *, handed_over: bool = False) -> None:
        """Close a session on another daemon, `handed_over`: when its streams have ended; gone already is as good.

        Raises ControlUnavailable.
        """
        query = f"code={code}&handover=1" if handed_over else f"code={code}"
        await self._call("DELETE", f"{node_url}/internal/session/{session}?{query}", None, missing_is_fine=True)

    async def _post(self, path: str, body: Any) -> Any:
        return await self._call("POST", path, orjson.dumps(body))

    async def _call(self, method: str, url: str, body: bytes | None, *, missing_is_fine: bool = False) -> Any:
        try:
            # httpx's timeouts are per read; a server that drips bytes would never meet them
            with trio.fail_after(self._seconds):
                request = self._client.build_request(method, url, content=body)
                request.stream = _Body(body or b"")
                answer = await self._client.send(request)
        except trio.TooSlowError:
            raise ControlUnavailable(f"no answer within {self._seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise ControlUnavailable(f"{type(error).__name__}: {error}") from error
        if missing_is_fine and answer.status_code == 404:
            return None
        return _data(answer)


class _Body(httpx.AsyncByteStream):
    """A request's body in one piece. httpx's own is an async generator, which a cancelled call leaves half way."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once:
    def __init__(self, body: bytes) -> None:
        self._left = [body] if body else []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def _data(answer: httpx.Response) -> Any:
    try:
        if len(answer.content) > _MAX_ANSWER:
            raise ValueError("too long")
        body = orjson.loads(answer.content)
    except ValueError:
        raise ControlUnavailable(f"answered {answer.status_code} without JSON", status=answer.status_code) from None
    if answer.status_code == 200 and isinstance(body, dict) and body.get("success") is True:
        return body.get("data")
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    raise ControlUnavailable(
        f"answered {answer.status_code} {code or ''}".rstrip(),
        status=answer.status_code,
        code=code if isinstance(code, str) else None,
        retry_after=_seconds(answer.headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> int | None:
    try:
        value = math.ceil(float(text or ""))
    except (ValueError, OverflowError):
        return None
    return value if 0 < value <= 3600 else None
