from django.apps import AppConfig


class ModelRegistryConfig(AppConfig):
    name = "apps.model_registry"
    verbose_name = "Models"
