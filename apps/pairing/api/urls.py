from django.urls import path

from apps.pairing.api import views

urlpatterns = [
    path("api/pairing/token", views.TokenCreateView.as_view()),
    path("api/pairing/tokens", views.TokenListView.as_view()),
    path("api/pairing/tokens/<str:id>", views.TokenView.as_view()),
]
