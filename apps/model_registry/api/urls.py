from django.urls import path

from apps.model_registry.api import views

urlpatterns = [
    path("api/models", views.ModelsView.as_view()),
    path("api/models/init", views.InitView.as_view()),
    path("api/models/<str:id>", views.ModelView.as_view()),
    path("api/models/<str:id>/finalize", views.FinalizeView.as_view()),
    path("api/models/<str:id>/download", views.DownloadView.as_view()),
]
