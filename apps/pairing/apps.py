from django.apps import AppConfig


class PairingConfig(AppConfig):
    name = "apps.pairing"
