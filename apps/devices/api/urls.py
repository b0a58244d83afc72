from django.urls import path

from apps.devices.api import views

urlpatterns = [
    path("api/devices", views.DevicesView.as_view()),
    path("api/devices/<str:id>", views.DeviceView.as_view()),
    path("api/devices/<str:id>/accelerators", views.AcceleratorsView.as_view()),
    path("api/devices/<str:id>/events", views.EventsView.as_view()),
    path("api/pairing/status", views.PairingStatusView.as_view()),
]
