from django.urls import path

from apps.webhooks.api import views

urlpatterns = [
    path("api/webhooks", views.WebhooksView.as_view()),
    path("api/webhooks/<str:id>", views.WebhookView.as_view()),
    path("api/webhooks/<str:id>/deliveries", views.DeliveriesView.as_view()),
    path("api/webhooks/<str:id>/ping", views.PingView.as_view()),
    path("api/webhooks/<str:id>/redeliver", views.RedeliverView.as_view()),
    path("api/webhooks/<str:id>/secret", views.SecretView.as_view()),
]
