from django.urls import path

from apps.converter.api import views

urlpatterns = [
    path("api/conversions", views.ConversionsView.as_view()),
    path("api/conversions/<str:id>", views.ConversionView.as_view()),
    path("api/conversions/<str:id>/callback", views.CallbackView.as_view()),
]
