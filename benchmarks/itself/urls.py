"""The project's routes and `/bench/{device}/small`."""

from django.urls import include, path

from benchmarks.itself.views import ItselfView

urlpatterns = [
    path("bench/<str:device_id>/small", ItselfView.as_view(schema=None)),
    path("", include("cloud.urls")),
]
