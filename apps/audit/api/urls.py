"""The route of the audit trail, below the root."""

from django.urls import path

from apps.audit.api import views

urlpatterns = [path("api/audit", views.AuditView.as_view())]
