"""The proxy views: DRF's authentication and refusals, and nothing else of it. They parse and negotiate nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.api.authentication import LoginTokenAuthentication
from apps.accounts.models import User
from apps.accounts.sessions import LoginSession
from apps.clusters.dispatcher import Dispatcher
from apps.common.api.views import id_or_404
from apps.common.errors import DomainError, invalid
from apps.common.http.responses import ok, request_id_of
from apps.common.limits.throttle import count_user
from apps.devices.selectors import Target, choose_device, device_of, target_of
from apps.proxy import access, origins, raw, selectors
from apps.proxy.authentication import TicketAuthentication
from apps.proxy.exchanges import engine
from apps.proxy.scan import SCAN_PATH, ScanTap
from apps.proxy.scan_all import scan_all
from apps.proxy.scan_serializers import ScanAllAnswer
from apps.proxy.scan_serializers import shown as shown_scan
from apps.proxy.schema import DEVICE, proxied, scanned, sockets
from apps.proxy.tickets import Ticket
from apps.tunnels.client_request import own_params

_MOUNT = re.compile(rb"/api/devices/[^/?]+/proxy(?=[/?]|\Z)")
_CLUSTER_MOUNT = re.compile(rb"/api/clusters/[^/?]+/proxy(?=[/?]|\Z)")


def is_for_websocket(request: Request) -> bool:
    """Whether it asks to be upgraded to a WebSocket; of another protocol (h2c) nobody knows what it lets through."""
    meta = request.META
    asked: str = meta.get("HTTP_UPGRADE", "")  # of hardly any: so it is looked at first, and not by way of `headers`
    if not asked or asked.strip().lower() != "websocket":
        return False
    if request.method != "GET" or meta.get("SERVER_PROTOCOL") == "HTTP/1.0":
        return False
    return "upgrade" in {option.strip() for option in meta.get("HTTP_CONNECTION", "").lower().split(",")}


class ProxyView(APIView):
    """Every method goes to the box. The order of refusals is api.md's: 401, 405, 404, then what `tunnel.http` says."""

    permission_classes = (IsAuthenticated,)
    parser_classes = ()
    throttle_scope = "PROXY"
    methods: frozenset[str] | None = None
    """The methods that are passed on; None: any."""
    switches = True
    """Whether a request for a WebSocket may become one."""
    upgrade = False
    """Whether this one is to."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """DRF's life of a request, without its choice of a handler by method."""
        self.args, self.kwargs = args, kwargs
        self.headers: dict[str, str] = {}
        self.request = self.initialize_request(request, *args, **kwargs)
        response: HttpResponseBase
        try:
            self.initial(self.request, *args, **kwargs)
            return self.forward(request, **kwargs)
        except Exception as exc:  # noqa: BLE001 - as DRF's own dispatch: handle_exception raises what it cannot map
            response = self.handle_exception(exc)
        if response.status_code == 405 and self.methods is not None:
            response["Allow"] = ", ".join(sorted(self.methods))
        self.response = self.finalize_response(self.request, response, *args, **kwargs)
        return self.response

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Credential (401), method (405), then which page asks (403), where no CORS answer keeps it from reading ours.

        So it is with tickets; with WebSockets, for which browsers ask no page for its leave; and where strangers act as
        the static development user.
        """
        super().initial(request, *args, **kwargs)
        if self.methods is not None and request.method not in self.methods:
            raise MethodNotAllowed(request.method or "")
        self.upgrade = self.switches and is_for_websocket(request)
        if self.ticket is not None or self.upgrade or not self._login():
            origins.require_allowed(request.headers.get("Origin", ""), request.META.get("HTTP_HOST", ""))
        if self.ticket is not None and self.upgrade:
            access.check_upgrade(self.ticket)

    def check_throttles(self, request: Request) -> None:
        """Counts the call for its user, where the look-up of the credential has not. Raises RATE_LIMITED."""
        count_user(request, self.throttle_scope)

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        """Path for path to the device that `X-Device-Id`, then `?device_id=`, names, or to the only one online."""
        return self.carry(request, self.chosen(request))

    @property
    def user(self) -> User:
        """Who asks; strangers were refused before."""
        return cast("User", self.request.user)

    @property
    def ticket(self) -> Ticket | None:
        """What the request came in by, if it is a ticket."""
        found = self.request.auth
        return found if isinstance(found, Ticket) else None

    def chosen(self, request: HttpRequest) -> Target:
        """The device that the request names, its ticket's, or the only one online. Raises 403, 404, 409, 503."""
        header = request.headers.get("X-Device-Id")
        query = own_params(raw.raw_target(request)).device_id
        if self.ticket is not None:
            header = access.device_of_ticket(self.ticket, header.strip() if header is not None else query)
        return choose_device(self.user.pk, header=header, query=query)

    def carry(
        self,
        request: HttpRequest,
        target: Target,
        *,
        path: bytes | None = None,
        mount: bytes = b"",
        tap: ScanTap | None = None,
    ) -> HttpResponseBase:
        """Run it as the request's user. `path` replaces the raw target; `mount` is what the box does not see."""
        raw_path = raw.raw_target(request) if path is None else path
        return engine.forward(
            request,
            selectors.as_route(target.entry),
            user_id=str(self.user.pk),
            login=self._login(),
            target=raw_path,
            mount=mount,
            tap=tap,
            upgrade=self.upgrade,
            admit=self._admission(raw_path.partition(b"?")[0][len(mount) :] or b"/"),
        )

    def _login(self) -> str:
        by = self.request.auth
        if isinstance(by, Ticket):
            return by.login
        return by.token_hash if isinstance(by, LoginSession) else ""

    def _admission(self, path: bytes) -> Callable[[], None] | None:
        """What spends the ticket, if it was one. Raises FORBIDDEN where it is not for this path."""
        ticket = self.ticket
        if ticket is None:
            return None
        access.check_path(ticket, path)
        return partial(access.spend_ticket, ticket)


class BrowserView(ProxyView):
    """A proxy view that takes tickets."""

    authentication_classes = (TicketAuthentication, LoginTokenAuthentication)


@proxied("Cameras", "A camera of the box, path for path", parameters=DEVICE, tickets=True)
class CamerasView(BrowserView):
    """`/api/cameras/*`."""


@proxied("Inference", "Inference on the box, path for path", parameters=DEVICE, tickets=True)
class InferenceView(BrowserView):
    """`/api/inference/*`."""


@proxied("Devices", "Any path of the box's local server", tickets=True)
class DeviceProxyView(BrowserView):
    """`/api/devices/{id}/proxy/{path}`: the generic proxy to the agent's local server."""

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        device_id = id_or_404(kwargs["device_id"])
        if self.ticket is not None:
            access.device_of_ticket(self.ticket, str(device_id))
        device = device_of(self.user.pk, device_id)
        match = _MOUNT.match(raw.raw_target(request))
        if match is None:  # Django decodes before it routes: `/api/%64evices/…` comes here too
            raise DomainError("BAD_REQUEST")
        return self.carry(request, target_of(device), mount=match.group())


@proxied("Clusters", "Any path, at the member whose turn it is", cluster=True)
class ClusterProxyView(ProxyView):
    """`/api/clusters/{id}/proxy/{path}`: the dispatcher."""

    throttle_scope = "CLUSTER"

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        dispatcher = Dispatcher(self.user.pk, id_or_404(kwargs["id"]))
        match = _CLUSTER_MOUNT.match(raw.raw_target(request))
        if match is None:
            raise DomainError("BAD_REQUEST")
        try:
            first = selectors.as_route(dispatcher.first())
            return engine.forward(
                request,
                first,
                user_id=str(self.user.pk),
                login=self._login(),
                mount=match.group(),
                upgrade=self.upgrade,
                others=dispatcher,
            )
        except BaseException as error:
            dispatcher.over(getattr(error, "code", ""))
            raise


@scanned()
class ScanView(ProxyView):
    """`/api/devices/scan`: the box's own answer, unchanged; the accelerators in it are stored."""

    methods = frozenset({"GET", "POST"})
    switches = False

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        named = request.GET.getlist("device_id")
        if not request.headers.get("X-Device-Id") and "all" in named:
            if len(named) > 1:
                raise invalid(device_id=_("Given more than once."))
            return self._all(request)
        chosen = self.chosen(request)
        _path, mark, query = raw.raw_target(request).partition(b"?")
        return self.carry(request, chosen, path=SCAN_PATH + mark + query, tap=ScanTap(chosen.device))

    def _all(self, request: HttpRequest) -> HttpResponseBase:
        """Every online device at once; this answer is ours."""
        found = scan_all(
            self.user.pk, method=request.method or "GET", request_id=request_id_of(request), now=timezone.now()
        )
        response = ok(ScanAllAnswer({"results": [shown_scan(each) for each in found]}).data)
        return self.finalize_response(self.request, response, *self.args, **self.kwargs)


@sockets()
class SocketView(BrowserView):
    """`/ws/*`: WebSockets, path for path; whatever asks for no upgrade to one is told so."""

    methods = frozenset({"GET"})

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        if not self.upgrade:
            raise DomainError("UPGRADE_REQUIRED")
        return self.carry(request, self.chosen(request))

    def handle_exception(self, exc: Exception) -> Response:
        response = super().handle_exception(exc)
        if response.status_code == 426:
            response["Upgrade"] = "websocket"
        return response
