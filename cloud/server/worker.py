"""gunicorn's threaded worker, as the API needs it.

gunicorn 27 itself answers in HTML before the view, lets half-sent heads block threads, joins repeated fields, drops
those with `_`, and writes a 500 into a connection that a view took over. Here the main thread gathers heads and
small bodies without blocking; a thread gets a connection with all that, and puts it back itself for the next request;
refusals before the view are the JSON envelope; a view finds the raw head in the environ (`visiona.raw_headers`,
`visiona.raw_target`) and may borrow the connection (`visiona.connection`, cloud.server.lend). It speaks HTTP/1 only and
no TLS: that is the reverse proxy's part. It knows nothing of Django.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final

from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData

from cloud.server.balance import SharingWorker
from cloud.server.connection import Connection
from cloud.server.head import Refusal, inbound_id, refusal_of
from cloud.server.lend import Takeover
from cloud.server.messages import DRAIN_BYTES, UPLOAD_MIN_RATE, ApiRequest, ApiResponse, WatchedBody
from cloud.server.slots import Slots
from cloud.server.threads import Crew
from cloud.server.waiting import Waiting
from tunnel.contract import request_id_from

IO_SECONDS: Final = 60.0
"""Seconds to send one piece of an answer; a client that takes longer is given up."""
LINGER_SECONDS: Final = 2.0
"""Seconds for which the rest of a client's bytes is read away after the last answer, so that no reset overtakes it."""
DRAIN_SECONDS: Final = 2.0
_READ: Final = 64 * 1024
_ACCEPTS: Final = 32  # connections taken in one turn of the loop
_BODIES: Final = 1024
"""Small bodies (64 KiB at most) that are gathered at once; beyond it the one that has taken longest is dropped."""
_RESET = struct.pack("ii", 1, 0)


class ApiWorker(SharingWorker):
    """The worker class; `worker_class = "cloud.server.worker.ApiWorker"`."""

    head_seconds = 10.0
    """Seconds for a whole request head, counted from its first byte or, on a new connection, from accept."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        """Guards the waiting lists and the poller, since threads put their connections back themselves."""
        self._heads = Waiting()  # a request begun, or a new connection
        self._bodies = Waiting()  # the head is whole, and of a small body the rest is to come
        self._idle = Waiting()  # kept alive between requests
        self._lingering = Waiting()  # answered and half-closed
        self._lent: set[Connection] = set()
        """Those whose exchange goes on without a thread."""

    def init_process(self) -> None:
        """Called by gunicorn in the worker's process, before it serves."""
        share = max(1, self.cfg.threads // 4)
        WatchedBody.slots, WatchedBody.upload_slots = Slots(share, shared=True), Slots(share, shared=False)
        super().init_process()

    def run(self) -> None:
        """Serve until the worker stops. If that fails, its threads end too: else the process would wait for them."""
        try:
            super().run()
        finally:
            self.tpool.shutdown(wait=False)

    def _finish(self) -> None:
        """Let what is under way end. What has not by then is cut: the end of the process must not look like its own."""
        super()._finish()
        for conn in list(self._lent):
            with suppress(OSError):
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def get_thread_pool(self) -> Crew:
        """The thread pool that gunicorn keeps as `tpool`."""
        return Crew(self.cfg.threads, self._serve)

    def enqueue_req(self, conn: Connection) -> None:
        """Hand the connection to a thread."""
        self.tpool.give(conn)

    # --- the main thread: from accept to a whole head -----------------------------------------------------------------
    def accept(self, listener: socket.socket) -> None:
        """Accept what waits at the listener. Beyond `worker_connections`, idle connections are closed for newcomers."""
        for _ in range(_ACCEPTS):
            if self.gives_way() or not self._accept_one(listener) or not self._make_room():
                return

    def take_all(self, listener: socket.socket) -> None:
        """Accept everything that waits at the listener, without regard to other workers; called as the worker ends."""
        for _ in range(self.cfg.backlog + 1):
            if not self._accept_one(listener):
                return
            self._make_room()

    def _accept_one(self, listener: socket.socket) -> bool:
        """Accept one connection. Returns whether there was one."""
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            self.saw_none()
            return False
        except (ConnectionAbortedError, InterruptedError):
            return False
        except OSError as error:  # out of descriptors or memory: it passes, and requests under way must not end
            self.log.warning("accept: %s", error)
            self.cannot_take()
            return False
        self.count(1)
        self._await_request(Connection(self.cfg, sock, address, listener.getsockname()))
        return True

    def _make_room(self) -> bool:
        """Where every place is taken, close the connection that idles longest, else the one whose body takes longest.

        Returns whether there is room for another connection.
        """
        if self.nr_conns < self.worker_connections:
            return True
        with self._lock:
            idle, slow = self._idle.oldest(), self._bodies.oldest()
        if idle is not None:
            self._drop(idle)
        elif slow is not None:
            self._refuse_late(slow)
        return idle is not None or slow is not None

    def _await_request(self, conn: Connection) -> None:
        """Wait for a request, or the rest of one: read what has arrived, and the rest as it arrives."""
        if conn.gate.head_came:
            self._await_body(conn)
        else:
            self._wait(conn, self._heads, self.head_seconds)
        self._readable(conn, conn.sock)

    def _await_body(self, conn: Connection) -> None:
        """The rest of a small body is to come: it is gathered like a head, since a thread would wait for it."""
        conn.gate.gathered()  # counted from here
        self._wait(conn, self._bodies, WatchedBody.grace_seconds)
        with self._lock:
            slow = self._bodies.oldest() if len(self._bodies) > _BODIES else None
        if slow is not None:
            self._refuse_late(slow)

    def _wait(self, conn: Connection, where: Waiting, seconds: float) -> None:
        """Put a connection on a waiting list; called by the thread that has it, and the main thread's from then on.
        Raises OSError, ValueError."""
        with self._lock:  # in it the clock is read too: deadlines are added in their order
            if where is self._idle and not self.alive:
                seconds = LINGER_SECONDS
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._readable, conn))
            conn.waits = where  # not before it is watched: what could not be is in no list, to be dropped twice
            where.add(conn, time.monotonic() + seconds)

    def _end_wait(self, conn: Connection) -> None:
        with self._lock:
            if conn.waits is None:
                return
            conn.waits.remove(conn)
            conn.waits = None
            self.poller.unregister(conn.sock)

    def _readable(self, conn: Connection, _sock: Any) -> None:
        """Handle a waiting connection that is readable: bytes arrived, or its client left."""
        if conn.waits is None:
            return  # dropped for a newcomer since the poller told of it, or a thread is just putting it back
        try:
            data = conn.sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data and conn.waits is not self._bodies:
            self._drop(conn)
        elif conn.waits is self._lingering:
            return  # the rest of a request that was answered already
        elif not data or conn.gate.feed(data):  # who reads a body that was cut short tells its client
            self._end_wait(conn)
            self.enqueue_req(conn)
        elif conn.gate.head_came and conn.waits is not self._bodies:
            self._end_wait(conn)
            self._await_body(conn)
        elif conn.waits is self._idle:  # the next request began: from here its head's own time runs
            with self._lock:
                self._idle.remove(conn)
                self._heads.add(conn, time.monotonic() + self.head_seconds)
                conn.waits = self._heads

    def _drop(self, conn: Connection) -> None:
        self._end_wait(conn)
        self.count(-1)
        conn.close()

    # --- the main thread: after a thread had the connection -----------------------------------------------------------
    def finish_request(self, conn: Connection, early: bytes | None) -> None:
        """Continue with a connection that a thread could not put back itself. Never waits for the client.

        `early`: the first bytes of the next request; None: the connection ends.
        """
        try:
            conn.sock.setblocking(False)
            if conn.reset:
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._drop(conn)
            elif early is None:
                self._linger(conn)
            elif not early:
                self._wait(conn, self._idle, float(self.cfg.keepalive))
            elif conn.gate.feed(early):
                self.enqueue_req(conn)
            else:
                self._await_request(conn)
        except OSError:  # the client reset it, or a view closed it
            self._drop(conn)

    def _linger(self, conn: Connection) -> None:
        conn.sock.shutdown(socket.SHUT_WR)
        self._wait(conn, self._lingering, LINGER_SECONDS)

    # --- the main thread: time ----------------------------------------------------------------------------------------
    def murder_pending(self) -> None:
        """Every second or sooner: heads and bodies that are late get 408, connections that said nothing are closed."""
        now = time.monotonic()
        with self._lock:
            late, over = self._heads.expired(now), self._lingering.expired(now)
            slow = self._bodies.expired(now)
        for conn in late:
            self._refuse_late(conn)
        for conn in slow:
            self._ask_for_progress(conn)
        for conn in over:
            self._drop(conn)

    def _ask_for_progress(self, conn: Connection) -> None:
        """Give a late body more time if enough of it has arrived for the lowest allowed rate; else refuse it."""
        if conn.gate.gathered() < WatchedBody.grace_seconds * UPLOAD_MIN_RATE:
            self._refuse_late(conn)
            return
        with self._lock:
            self._bodies.remove(conn)
            self._bodies.add(conn, time.monotonic() + WatchedBody.grace_seconds)

    def _refuse_late(self, conn: Connection) -> None:
        if not conn.gate.begun:
            self._drop(conn)
            return
        part = "body" if conn.gate.head_came else "head"
        refusal = Refusal("REQUEST_TIMEOUT", f"the {part} did not come in time")
        request_id = inbound_id(conn.gate.take())
        self._end_wait(conn)
        try:
            conn.sock.send(refusal.response(request_id))  # an empty socket buffer takes it at once
            self._linger(conn)
        except OSError:
            self._drop(conn)
        self._log_refusal(conn, refusal, request_id)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close connections that idled too long, all idle ones when the worker ends, and one where no place is free."""
        with self._lock:
            over = self._idle.all() if force else self._idle.expired(time.monotonic())
        for conn in over:
            self._drop(conn)
        self._make_room()

    def _cap_keepalive(self, deadline: float) -> None:
        """As the worker stops, let idle connections and heads that have not begun end before the grace is over."""
        with self._lock:
            self._idle.cap(deadline)
            self._heads.cap(deadline)

    # --- a worker's thread --------------------------------------------------------------------------------------------
    def _serve(self, conn: Connection) -> None:
        """Serve one request in a thread, then put the connection back to wait for the next one.

        The main thread is woken only to end a connection.
        """
        try:
            keep = self.handle(conn)
        except BaseException as error:  # noqa: BLE001 - as an executor: no request ends the thread that serves others
            self.log.critical("worker thread failed: %r", error)
            keep = False
        if conn.goes_on is not None:
            self._go_on(conn, conn.goes_on)
            return
        early = conn.parser.unreader.take_buffered() if keep and not conn.reset else None
        if early == b"":
            try:
                conn.sock.setblocking(False)
                self._wait(conn, self._idle, float(self.cfg.keepalive))
            except (OSError, ValueError):  # a view closed it, or the poller is closed: the worker is at its end
                early = None
            else:
                return
        self.method_queue.defer(self.finish_request, conn, early)

    def _go_on(self, conn: Connection, go_on: Callable[[], None]) -> None:
        """From here on the connection is another's, who gives it back by `take_back`."""
        conn.goes_on = None
        self._lent.add(conn)
        try:
            go_on()
        except Exception as error:  # noqa: BLE001 - no request ends the thread that serves others
            self.log.critical("an exchange could not go on: %r", error)
            conn.reset = True
            self.take_back(conn, None)

    def threads_free(self) -> float:
        """The share of the threads that have nothing to do."""
        return float(self.tpool.free() / self.cfg.threads)

    def take_back(self, conn: Connection, early: bytes | None) -> None:
        """From any thread: go on with a connection whose exchange went on after its view. `early` as of
        `finish_request`."""
        self._lent.discard(conn)
        self.method_queue.defer(self.finish_request, conn, early)

    def handle(self, conn: Connection) -> bool:
        """Serve one request whose head is whole. Returns whether the connection stays open."""
        conn.sock.settimeout(IO_SECONDS)
        refusal, head = conn.gate.refusal, conn.gate.take()
        if refusal is not None:
            return self._refuse(conn, refusal, inbound_id(head), head_only=head.startswith(b"HEAD "))
        conn.parser.unreader.unread(head)
        try:
            request = next(conn.parser)
        except (StopIteration, NoMoreData):
            return False
        except Exception as error:  # noqa: BLE001 - whatever a parser raises must become an answer
            request_id = inbound_id(head)
            refusal = refusal_of(error) or self._crash("a head could not be read", error, request_id)
            return self._refuse(conn, refusal, request_id, head_only=head.startswith(b"HEAD "))
        try:
            return self.handle_request(request, conn) and self._drained(conn, request)
        except OSError as error:
            self.log.debug("the client left: %s", error)
            return False

    def handle_request(self, req: ApiRequest, conn: Connection) -> bool:
        """Run the app. Returns whether the connection may stay open. Raises OSError of the client's connection."""
        started = time.monotonic()
        self.cfg.pre_request(self, req)
        resp, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg, response_class=ApiResponse)
        req.request_id = request_id_from(environ.get("HTTP_X_REQUEST_ID"))
        loan = Takeover(req, resp, conn, self)
        resp.loan = loan
        resp.worker = self
        environ.update(
            {
                "wsgi.multithread": True,
                "HTTP_X_REQUEST_ID": req.request_id,
                "visiona.raw_headers": req.raw_headers,
                "visiona.raw_target": req.raw_target,
                "visiona.connection": loan,
            }
        )
        if self.stopping:
            environ["visiona.stopping"] = True
        try:
            self._run_app(environ, resp)
        except Exception as error:  # noqa: BLE001 - the last resort: whatever an app raises must become an answer
            return self._failed(conn, req, resp, error)
        finally:
            self.log.access(resp, req, environ, timedelta(seconds=time.monotonic() - started))
            self.cfg.post_request(self, req, environ, resp)
            conn.goes_on = loan.handed_over
        return not resp.should_close()

    def _run_app(self, environ: dict[str, Any], resp: ApiResponse) -> None:
        body = self.wsgi(environ, resp.start_response)
        try:
            if isinstance(body, environ["wsgi.file_wrapper"]):
                resp.write_file(body)
            else:
                for item in body:
                    resp.write(item)
            resp.close()
        finally:
            if hasattr(body, "close"):
                body.close()

    def _failed(self, conn: Connection, req: ApiRequest, resp: ApiResponse, error: Exception) -> bool:
        """Handle an exception of the app: an answer that has not begun becomes a 500; one that has, is reset."""
        facts = _named(req.request_id)
        if resp.client_gone:
            conn.reset = True
            self.log.debug("the client left", extra=facts)
            return False
        if resp.loan.open:
            resp.loan.cut()
            self.log.error("a view failed with its client's connection in hand", exc_info=error, extra=facts)
            return False
        if resp.headers_sent:
            conn.reset = True
            self.log.error("an answer was cut", exc_info=error, extra=facts)
            return False
        refusal = req.fault or self._crash("the app failed", error, req.request_id)
        return self._refuse(conn, refusal, req.request_id, head_only=req.method == "HEAD")

    def _drained(self, conn: Connection, req: ApiRequest) -> bool:
        """Read the rest of the request's body away. Returns whether the connection can carry another request."""
        if req.body_in_the_way:
            return False
        if isinstance(req.body, WatchedBody):
            req.continued = True
            req.body.drain_until = time.monotonic() + DRAIN_SECONDS
        return bool(conn.parser.finish_body(max_bytes=DRAIN_BYTES))

    def _crash(self, what: str, error: Exception, request_id: str) -> Refusal:
        self.log.error(what, exc_info=error, extra=_named(request_id))
        return Refusal("INTERNAL_ERROR", what)

    def _refuse(self, conn: Connection, refusal: Refusal, request_id: str, *, head_only: bool = False) -> bool:
        """Answer in the envelope; the connection closes."""
        self._log_refusal(conn, refusal, request_id)
        try:
            conn.sock.sendall(refusal.response(request_id, head_only=head_only))
        except OSError as error:
            self.log.debug("the client left before its refusal: %s", error)
        return False

    def _log_refusal(self, conn: Connection, refusal: Refusal, request_id: str) -> None:
        address = conn.client[0] if isinstance(conn.client, tuple) else ""
        facts = _named(request_id) | {"code": refusal.code, "status": refusal.status, "address": address}
        facts["detail"] = str(refusal)
        self.log.info("request refused", extra=facts)


def _named(request_id: str) -> dict[str, Any]:
    return {"request_id": request_id}
