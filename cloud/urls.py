"""The URL map: each app mounts its own routes."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from apps.common.http.routes import CachedRoutes

# Links and bookmarks of the release before, whose deployments were a part of `model_registry`.
_MOVED = RedirectView.as_view(url="/admin/deployments/deployment/%(rest)s", query_string=True)

_ROUTES = [
    path("admin/model_registry/deployment/", _MOVED, {"rest": ""}),
    path("admin/model_registry/deployment/<path:rest>", _MOVED),
    path("admin/", admin.site.urls),
    path("admin", RedirectView.as_view(url="/admin/")),  # the one route whose own form has the slash
    path("", include("apps.accounts.api.urls")),
    path("", include("apps.proxy.urls")),  # before devices: `/api/devices/scan` is no device
    path("", include("apps.system.api.urls")),
    path("", include("apps.proxy.internal.urls")),
    path("", include("apps.pairing.api.urls")),
    path("", include("apps.devices.api.urls")),
    path("", include("apps.model_registry.api.urls")),
    path("", include("apps.deployments.api.urls")),
    path("", include("apps.storage.api.urls")),
    path("", include("apps.clusters.api.urls")),
    path("", include("apps.converter.api.urls")),
    path("", include("apps.webhooks.api.urls")),
    path("", include("apps.audit.api.urls")),
    path("", include("apps.console.urls")),
]
urlpatterns = [CachedRoutes(_ROUTES)]

handler400 = "apps.common.http.error_handlers.bad_request"
handler403 = "apps.common.http.error_handlers.forbidden"
handler404 = "apps.common.http.error_handlers.unknown_route"
handler500 = "apps.common.http.error_handlers.crash"
