"""The project's routes and `/api/bench/{device}/small`.

It is below `/api/`, so that the middleware does for it what it does for the lane that is measured beside it.
"""

from django.urls import include, path

from benchmarks.itself.views import ItselfView

urlpatterns = [
    path("api/bench/<str:device_id>/small", ItselfView.as_view(schema=None)),
    path("", include("cloud.urls")),
]
