"""The proxied routes, below the root. Paths are matched whole, with any tail: they belong to the box."""

from django.urls import path, re_path

from apps.proxy import views
from apps.proxy.ticket_view import TicketView

# The roots without a tail are left out of the schema, where `{path}` may be empty.
urlpatterns = [
    path("api/ws/ticket", TicketView.as_view()),
    path("api/cameras", views.CamerasView.as_view(schema=None)),
    re_path(r"^api/cameras/(?P<path>[\s\S]*)\Z", views.CamerasView.as_view()),
    path("api/inference", views.InferenceView.as_view(schema=None)),
    re_path(r"^api/inference/(?P<path>[\s\S]*)\Z", views.InferenceView.as_view()),
    path("api/devices/scan", views.ScanView.as_view()),
    path("api/devices/<str:device_id>/proxy", views.DeviceProxyView.as_view(schema=None)),
    re_path(r"^api/devices/(?P<device_id>[^/]+)/proxy/(?P<path>[\s\S]*)\Z", views.DeviceProxyView.as_view()),
    path("api/clusters/<str:id>/proxy", views.ClusterProxyView.as_view(schema=None)),
    re_path(r"^api/clusters/(?P<id>[^/]+)/proxy/(?P<path>[\s\S]*)\Z", views.ClusterProxyView.as_view()),
    re_path(r"^ws/(?P<path>[\s\S]*)\Z", views.SocketView.as_view()),
]
