"""The routes of the system group, the docs and the metrics, below the root."""

from django.urls import path

from apps.system import views as pages
from apps.system.api import views

urlpatterns = [
    path("healthz", views.HealthzView.as_view()),
    path("api/system/health", views.SystemHealthView.as_view()),
    path("api/system/info", views.SystemInfoView.as_view()),
    path("api/schema", pages.schema),
    path("api/docs", pages.docs),
    path("internal/metrics", pages.metrics_page),
]
