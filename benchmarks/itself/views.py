"""The generic proxy's view without its proxying: the same authentication and look-ups, an answer of its own."""

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from apps.common.api.views import id_or_404
from apps.devices.selectors import device_of, target_of
from apps.proxy.views import ProxyView

SMALL = b'{"devices":[{"serial":"KL720-0001","chip":"KL720","usb_id":"3231:0720","status":"ready"}]}'


class ItselfView(ProxyView):
    """What `DeviceProxyView` does, up to the point where it would ask the box."""

    def forward(self, request: HttpRequest, **kwargs: str) -> HttpResponseBase:  # noqa: ARG002 - ProxyView's interface
        target_of(device_of(self.user.pk, id_or_404(kwargs["device_id"])))
        return HttpResponse(SMALL, content_type="application/json")
