"""The proxied routes, below the root. Paths are matched whole, with any tail: they belong to the box."""

from django.urls import path, re_path

from apps.proxy import views

urlpatterns = [
    re_path(r"^api/cameras(?:/[\s\S]*)?\Z", views.BoxView.as_view()),
    re_path(r"^api/inference(?:/[\s\S]*)?\Z", views.BoxView.as_view()),
    path("api/devices/scan", views.ScanView.as_view()),
    re_path(r"^api/devices/(?P<device_id>[^/]+)/proxy(?:/[\s\S]*)?\Z", views.DeviceProxyView.as_view()),
    re_path(r"^ws/[\s\S]*\Z", views.SocketView.as_view()),
]
