from django.urls import path

from apps.proxy.internal import views

urlpatterns = [
    path("internal/tunnel/authenticate", views.authenticate),
    path("internal/tunnel/heartbeat", views.heartbeat),
    path("internal/tunnel/events", views.events),
    path("internal/authorize", views.authorize),
]
