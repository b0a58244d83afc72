"""The proxy views: DRF's authentication and refusals, and nothing else of it. They parse and negotiate nothing."""

from __future__ import annotations

import re
from typing import Any, Final, cast

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.models import User
from apps.accounts.sessions import LoginSession
from apps.common.api import id_or_404
from apps.common.errors import DomainError, invalid
from apps.devices.selectors import Target, choose_device, device_of, target_of
from apps.proxy import engine, raw, selectors
from apps.proxy.scan import ScanTap
from apps.proxy.schema import DEVICE, proxied, sockets
from apps.tunnels.forwarder import Tap, own_params

_MOUNT = re.compile(rb"/api/devices/[^/?]+/proxy(?=[/?]|\Z)")
_SCAN_PATH: Final = b"/api/devices/scan"


class ProxyView(APIView):
    """Every method goes to the box. The order of refusals is api.md's: 401, 405, 404, then what `tunnel.http` says."""

    permission_classes = (IsAuthenticated,)
    parser_classes = ()
    methods: frozenset[str] | None = None
    """The methods that are passed on; None: any."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """DRF's life of a request, without its choice of a handler by method."""
        self.args, self.kwargs = args, kwargs
        self.headers: dict[str, str] = {}
        self.request = self.initialize_request(request, *args, **kwargs)
        response: HttpResponseBase
        try:
            self.initial(self.request, *args, **kwargs)
            if self.methods is not None and request.method not in self.methods:
                raise MethodNotAllowed(request.method or "")
            return self.forward(request, **kwargs)
        except Exception as exc:  # noqa: BLE001 - as DRF's own dispatch: handle_exception raises what it cannot map
            response = self.handle_exception(exc)
        if response.status_code == 405 and self.methods is not None:
            response["Allow"] = ", ".join(sorted(self.methods))
        self.response = self.finalize_response(self.request, response, *args, **kwargs)
        return self.response

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        """Path for path to the device that `X-Device-Id`, then `?device_id=`, names, or to the only one online."""
        return self.carry(request, self.chosen(request))

    @property
    def user(self) -> User:
        """Who asks; strangers were refused before."""
        return cast("User", self.request.user)

    def chosen(self, request: HttpRequest) -> Target:
        """The device that the request names, or the only one online. Raises DomainError 404, 409, 503."""
        return choose_device(
            self.user.pk,
            header=request.headers.get("X-Device-Id"),
            query=own_params(raw.raw_target(request)).device_id,
        )

    def carry(
        self,
        request: HttpRequest,
        target: Target,
        *,
        path: bytes | None = None,
        mount: bytes = b"",
        tap: Tap | None = None,
    ) -> HttpResponseBase:
        """Run it as the request's user. `path` replaces the raw target; `mount` is what the box does not see."""
        login = self.request.auth
        return engine.forward(
            request,
            selectors.as_route(target.entry),
            user_id=str(self.user.pk),
            login=login.token_hash if isinstance(login, LoginSession) else "",
            target=path,
            mount=mount,
            tap=tap,
        )


@proxied("Cameras", "A camera of the box, path for path", parameters=DEVICE)
class CamerasView(ProxyView):
    """`/api/cameras/*`."""


@proxied("Inference", "Inference on the box, path for path", parameters=DEVICE)
class InferenceView(ProxyView):
    """`/api/inference/*`."""


@proxied("Devices", "Any path of the box's local server")
class DeviceProxyView(ProxyView):
    """`/api/devices/{id}/proxy/{path}`: the generic proxy to the agent's local server."""

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        device = device_of(self.user.pk, id_or_404(kwargs["device_id"]))
        match = _MOUNT.match(raw.raw_target(request))
        if match is None:  # Django decodes before it routes: `/api/%64evices/…` comes here too
            raise DomainError("BAD_REQUEST")
        return self.carry(request, target_of(device), mount=match.group())


@proxied("Devices", "Scan for accelerators", parameters=DEVICE, methods=("get", "post"))
class ScanView(ProxyView):
    """`/api/devices/scan`: the box's own answer, unchanged; the accelerators in it are stored."""

    methods = frozenset({"GET", "POST"})

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        if not request.headers.get("X-Device-Id") and "all" in request.GET.getlist("device_id"):
            raise invalid(device_id="Name one device by its id.")
        chosen = self.chosen(request)
        _, mark, query = raw.raw_target(request).partition(b"?")
        return self.carry(request, chosen, path=_SCAN_PATH + mark + query, tap=ScanTap(chosen.device))


@sockets()
class SocketView(ProxyView):
    """`/ws/*`: what asks for no upgrade is told so; upgrades are not carried yet."""

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:
        options = request.headers.get("Connection", "").lower()
        if "upgrade" not in {option.strip() for option in options.split(",")} or not request.headers.get("Upgrade"):
            raise DomainError("UPGRADE_REQUIRED")
        raise DomainError("NOT_IMPLEMENTED")

    def handle_exception(self, exc: Exception) -> Response:
        response = super().handle_exception(exc)
        if response.status_code == 426:
            response["Upgrade"] = "websocket"
        return response
