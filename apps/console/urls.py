from django.templatetags.static import static
from django.urls import path
from django.views.generic import RedirectView

from apps.console.views import console

urlpatterns = [
    path("", console, name="console"),
    path("favicon.ico", RedirectView.as_view(url=static("console/icon.svg")), name="favicon"),
]
