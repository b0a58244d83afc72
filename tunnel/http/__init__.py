"""What a proxied HTTP exchange is, without I/O: the rules of api.md, "What the proxy must get right", written once.

Both lanes drive it: the DRF view with blocking sockets, the daemon's fast lane with Trio. It knows no socket, clock,
thread or task, no Django and no Trio; bytes go in, bytes and decisions come out.

The order of calls::

    own = own_params(raw_target)                       # device_id (a UUID only), ticket: to choose and authorise
    head = RequestHead.unchecked(method, raw_target, raw_fields, http11=True)      # DRF view: gunicorn read the head
    head = RequestParser().feed(data)                  # fast lane: from raw bytes; .rest is what follows
    exchange = Exchange(head, Via(scheme=…, address=…, request_id=…, mount=b"/api/devices/<id>/proxy"))

    # open a stream to the box within limits.open_seconds; on failure: raise exchange.failure(code, detail)
    send(exchange.start())
    # if exchange.request.expects_continue: send CONTINUE to the client when its body is first wanted (the worker
    # class in cloud/server/worker.py does so by itself at the first read of wsgi.input)
    for data in client_body:                           # only if exchange.request.body_length != 0
        sendmsg(exchange.send_body(data))
    send(exchange.end_body())                          # always: tells a short body (400)

    while not exchange.complete:                       # may run while the body still goes out
        data = recv()                                  # bytes, not a buffer that is reused
        pieces = exchange.receive(data) if data else exchange.receive_end() or []
        if exchange.answer and head_not_sent:          # the first time
            send_to_client(exchange.client_head())     # or: answer.status, .reason, .fields, .length for a WSGI server
        sendmsg_to_client(exchange.client_body(pieces))
    send_to_client(exchange.client_end())

    if exchange.reusable: pool(stream)                 # as ReusePolicy says; else close the stream

What is raised for bytes from outside is an `ExchangeError`: `ProxyError` (answer it: `error_body`, `error_response`,
`.status`, `.retry_after`) or `AnswerCut` (the head is out: reset the client's connection, never end it cleanly).
`exchange.may_retry(reused=…)` says whether to call `exchange.restart()` and try another stream.

For WSGI: `answer.fields` hold no framing (`answer.length` is the Content-Length, NO_LENGTH without one) and no
X-Request-ID; they are pairs of bytes, repeated ones included, so a mapping of headers would lose some.

Heads are split off here and read by httptools (llhttp), which is strict, one parser a head; body framing is our own
(llhttp copies body bytes and cannot be told that an answer to HEAD has no body). Over llhttp we refuse: two
Transfer-Encoding fields, codings but `chunked`, chunks in HTTP/1.0, absolute form, two Hosts, HTTP/0.9 and 2.0.
"""

from tunnel.http.body import BodyReader as BodyReader
from tunnel.http.body import Buffer as Buffer
from tunnel.http.body import FramingError as FramingError
from tunnel.http.errors import AnswerCut as AnswerCut
from tunnel.http.errors import ExchangeError as ExchangeError
from tunnel.http.errors import Language as Language
from tunnel.http.errors import MisuseError as MisuseError
from tunnel.http.errors import ProxyError as ProxyError
from tunnel.http.errors import error_body as error_body
from tunnel.http.errors import error_response as error_response
from tunnel.http.exchange import CONTINUE as CONTINUE
from tunnel.http.exchange import UNREAD_FROM as UNREAD_FROM
from tunnel.http.exchange import Exchange as Exchange
from tunnel.http.fields import Field as Field
from tunnel.http.fields import is_no_range as is_no_range
from tunnel.http.fields import match_value as match_value
from tunnel.http.heads import METHODS as METHODS
from tunnel.http.heads import RequestHead as RequestHead
from tunnel.http.heads import RequestParser as RequestParser
from tunnel.http.limits import LIMITS as LIMITS
from tunnel.http.limits import Limits as Limits
from tunnel.http.ordinary import OrdinaryAnswers as OrdinaryAnswers
from tunnel.http.request import CHUNKED as CHUNKED
from tunnel.http.request import IDEMPOTENT as IDEMPOTENT
from tunnel.http.request import MOVING as MOVING
from tunnel.http.request import Prepared as Prepared
from tunnel.http.request import ProxyRequest as ProxyRequest
from tunnel.http.request import Via as Via
from tunnel.http.request import outline as outline
from tunnel.http.request import prepare as prepare
from tunnel.http.response import NO_LENGTH as NO_LENGTH
from tunnel.http.response import AnswerHead as AnswerHead
from tunnel.http.response import ResponseReader as ResponseReader
from tunnel.http.response import field_lines as field_lines
from tunnel.http.reuse import PROBE_SECONDS as PROBE_SECONDS
from tunnel.http.reuse import AfterAnswer as AfterAnswer
from tunnel.http.reuse import ReusePolicy as ReusePolicy
from tunnel.http.target import NO_PARAMS as NO_PARAMS
from tunnel.http.target import OwnParams as OwnParams
from tunnel.http.target import is_device_id as is_device_id
from tunnel.http.target import own_params as own_params
