from django.urls import path

from apps.deployments.api import views

urlpatterns = [
    path("api/models/<str:id>/deploy", views.DeployView.as_view()),
    path("api/deployments", views.DeploymentsView.as_view()),
    path("api/deployments/<str:id>", views.DeploymentView.as_view()),
]
