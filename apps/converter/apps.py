from django.apps import AppConfig


class ConverterConfig(AppConfig):
    name = "apps.converter"
