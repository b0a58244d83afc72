from django.urls import path

from apps.storage.api import views

urlpatterns = [path("storage/<str:signed>", views.StorageView.as_view())]
