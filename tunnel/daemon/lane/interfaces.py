"""What the parts of the public lane know of each other: interfaces only.

A client's connection, an exchange and the fast path are each given a narrow view of who made them, so that none of them
imports its parent. Nothing here is compiled: a Protocol costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from tunnel.daemon.http.forwarded import TrustedProxies
from tunnel.daemon.lane.authorizer import Authorizer, Grant
from tunnel.daemon.lane.fd_passing import FdPassing
from tunnel.daemon.lane.head_cache import HeadKey
from tunnel.daemon.lane.migration import Movable
from tunnel.daemon.upstream.directory import UpstreamDirectory
from tunnel.http import BodyReader, Buffer, Field, ProxyError, RequestHead
from tunnel.net.poller import Poller
from tunnel.net.sockets import ByteStream


class InFlight(Protocol):
    """What who watches over an exchange knows of it."""

    grant: Grant
    over: bool
    upgraded: bool

    @property
    def endless(self) -> bool:
        """Its answer is one without an end."""

    @property
    def checked(self) -> float:
        """When the caller was last found allowed; infinite for what is over before anybody need ask again."""

    @property
    def request_done(self) -> bool:
        """The whole request was read."""

    def allowed(self, at: float) -> None:
        """The caller was found allowed at that time."""

    def client_left(self) -> None:
        """The client is gone. Idempotent."""

    def end_with(self, error: ProxyError) -> None:
        """End it from outside: told if nothing was, else the client's connection is reset. Idempotent."""

    def look(self, now: float) -> None:
        """The watchdog: end it if nothing moved for too long."""


class ClientExchange(InFlight, Protocol):
    """What a client's connection knows of the exchange that it carries; who shares streams writes another one."""

    @property
    def wants_body(self) -> bool:
        """The client sends a body."""

    async def start(self) -> None:
        """Begin; in the client's task. A fault is told to the client, not raised."""

    def body_reader(self) -> BodyReader:
        """For the raw bytes behind the head."""

    def expect_body(self) -> None:
        """The body is wanted now (100 Continue)."""

    async def send_body(self, pieces: list[Buffer]) -> bool:
        """Pass body bytes on; False: the exchange is over."""

    async def end_body(self) -> None:
        """The body was read to its end."""

    async def half_close(self) -> None:
        """The client's side of an upgraded connection ended."""


Plain = Callable[[Grant, bytes], float]
"""(grant, request line for the box): until when it is known that the answer is not one to share, else 0.0."""


class Downstream(Movable, Protocol):
    """A client's connection, as the exchange uses it that it carries."""

    @property
    def forwarded(self) -> bytes:
        """The same, as it is told to the box."""

    @property
    def trusted(self) -> bool:
        """Whether the peer is a trusted proxy."""

    @property
    def reading(self) -> bool:
        """Whether a task reads from it; False: its end has to be asked for."""

    @property
    def sent(self) -> int:
        """Bytes that the kernel took."""

    ended: bool
    """It sends no more, and waits for its answer."""
    noted: HeadKey | None
    """What the head of its request came to, if that is kept."""
    proved: bool
    """A request of it was allowed."""
    run: InFlight | None
    """What it carries now."""

    def answer(self, data: bytes, *, keep: bool) -> None:
        """Answer with `data`, which is whole."""

    def write(self, pieces: Sequence[Buffer], *, last: bool = False) -> bool:
        """Write, keeping what the kernel does not take; False: something is kept. Raises OSError.

        `last`: nothing follows them but the end of the answer.
        """

    def accepted(self) -> None:
        """A box is about to see the request."""

    def send_eof(self) -> None:
        """The box half-closed an upgraded connection."""

    async def flush(self) -> None:
        """Wait until the kernel has taken all."""

    def refuse(self, error: ProxyError, *, keep: bool, head: RequestHead | None = None) -> None:
        """Answer with the envelope of an error."""

    def changed(self) -> None:
        """Wake its task: the exchange is over, or wants its body."""

    def finished(self, *, keep: bool) -> None:
        """The answer is complete."""

    def cut(self) -> None:
        """Reset it: what was sent is no complete answer."""

    def cut_when_flushed(self) -> None:
        """Reset it once the kernel has taken what was written."""

    def served_by(self, quick: InFlight, now: float) -> None:
        """The fast path carries its request."""

    def served(self, now: float) -> None:
        """The fast path has answered its request."""


class Runner(Protocol):
    """Who carries on what a step left over."""

    def spawn(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run it in the background. It must end with the exchange that it belongs to."""


class ExchangeContext(Runner, Protocol):
    """Who runs the exchanges, as one of them sees it."""

    @property
    def draining(self) -> bool:
        """Whether clients are to ask elsewhere from now on."""

    @property
    def patience(self) -> float:
        """Seconds for which a device that moves is waited for."""

    @property
    def upstreams(self) -> UpstreamDirectory[Grant]:
        """The ways to boxes."""

    def cors_of(self, head: RequestHead) -> list[Field]:
        """The CORS fields for the answer to a request."""

    def ended(self, run: LoggedExchange) -> None:
        """Count and log an exchange that is over."""

    def crashed(self, run: LoggedExchange, error: Exception) -> None:
        """A bug of ours in one exchange: log it and end it."""


class LoggedExchange(InFlight, Protocol):
    """An exchange that tells how it ended."""

    @property
    def request_id(self) -> str:
        """As the client, the box and the log know it."""

    @property
    def outcome(self) -> str:
        """How it ended."""

    def facts(self) -> dict[str, Any]:
        """For the log line."""


class FastPathContext(ExchangeContext, Protocol):
    """Who runs the exchanges, as the fast path sees it."""

    running: set[InFlight]
    poller: Poller | None
    plain: Plain

    @property
    def authorizer(self) -> Authorizer:
        """Who says what Django said."""

    def no_longer(self, run: InFlight) -> None:
        """It does not run any more, here or in this guise."""


class FastPathServer(InFlight, Protocol):
    """What serves the ordinary requests of one connection."""

    def begin(self, data: bytes) -> bool:
        """Serve what was read, if it is an ordinary request that was met before; False: nothing was done."""


class ClientContext(Runner, Protocol):
    """The lane, as a client's connection sees it."""

    poller: Poller | None

    @property
    def hands(self) -> FdPassing | None:
        """What gives connections to other processes of this host, where there are any."""

    @property
    def draining(self) -> bool:
        """Whether no new requests are taken."""

    @property
    def head_seconds(self) -> float:
        """For a head to come whole."""

    @property
    def proxies(self) -> TrustedProxies:
        """Whom we believe when it says for whom it asks."""

    def fast_path(self, client: Downstream) -> FastPathServer:
        """What serves the ordinary requests of that connection."""

    def cached(self, client: Downstream, head: RequestHead) -> ClientExchange | None:
        """The exchange, if all that it needs is at hand."""

    async def begin(self, client: Downstream, head: RequestHead) -> ClientExchange | None:
        """The exchange; None: the client was told why there is none."""

    def told(self, error: ProxyError, head: RequestHead | None, *, keep: bool, request_id: str = "") -> bytes:
        """The envelope of an error as a whole answer."""

    def reset_when_flushed(self, kept: ByteStream, address: str) -> None:
        """Reset a client's connection once what was written has arrived."""
