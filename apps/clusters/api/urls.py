from django.urls import path

from apps.clusters.api import views

urlpatterns = [
    path("api/clusters", views.ClustersView.as_view()),
    path("api/clusters/<str:id>", views.ClusterView.as_view()),
    path("api/clusters/<str:id>/members/<str:device_id>", views.MemberView.as_view()),
]
