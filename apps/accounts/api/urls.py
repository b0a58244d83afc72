"""The routes of accounts, below the root."""

from django.urls import path

from apps.accounts.api import views

urlpatterns = [
    path("api/auth/register", views.RegisterView.as_view()),
    path("api/auth/login", views.LoginView.as_view()),
    path("api/auth/logout", views.LogoutView.as_view()),
    path("api/auth/logout-all", views.LogoutAllView.as_view()),
    path("api/auth/me", views.MeView.as_view()),
    path("api/auth/sessions", views.SessionListView.as_view()),
    path("api/auth/sessions/<str:id>", views.SessionView.as_view()),
]
