"""Health, the state of the tunnels, and which build this is."""

import platform
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils.translation import gettext as _
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts import mails
from apps.accounts.oidc.config import config
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PublicApiView, StrictQuery
from apps.common.errors import DomainError
from apps.common.http.responses import ok
from apps.converter.selectors import configured
from apps.system import checks
from apps.tunnels import registry


class HealthQuery(StrictQuery):
    live = serializers.ChoiceField(
        choices=["0", "1"], required=False, help_text="1: is the process alive? PostgreSQL and Redis are not asked."
    )


class HealthzAnswer(serializers.Serializer[Any]):
    """The one success without the envelope, as load balancers like it."""

    status = serializers.ChoiceField(choices=["ok"])
    checks = serializers.DictField(child=serializers.ChoiceField(choices=["ok"]))


class HealthzView(PublicApiView):
    query_classes = {"GET": HealthQuery}  # noqa: RUF012 - declared ClassVar in ApiView

    @describe("System", bare=HealthzAnswer, public=True)
    def get(self, request: Request) -> Response:
        """Ready to serve? Pings PostgreSQL and Redis. 503 also where this process is about to end."""
        if self.query.get("live") == "1":
            return Response({"status": "ok", "checks": {}})
        if request.META.get("visiona.stopping"):  # the server's word (cloud.server.stopping): all is served still
            raise DomainError("OVERLOADED", _("This process is about to end; ask another one."))
        found = checks.run()
        if found.get("postgresql") == checks.DOWN:
            raise DomainError("DATABASE_UNAVAILABLE", details={"checks": found})
        if found.get("redis") == checks.DOWN:
            raise DomainError("CACHE_UNAVAILABLE", details={"checks": found})
        return Response({"status": "ok", "checks": found})


class SystemHealthSerializer(serializers.Serializer[Any]):
    daemons_alive = serializers.IntegerField(help_text="Tunnel daemons with a heartbeat within 30 s.")
    daemons_draining = serializers.IntegerField(help_text="Those of them that are about to end.")
    tunnels_online = serializers.IntegerField(help_text="Tunnels that all of them hold.")
    own_devices_online = serializers.IntegerField(help_text="Devices of this user that are online.")
    redis_maxmemory_policy = serializers.CharField(
        help_text="What Redis does when its memory is full. Any other than `noeviction` loses logins and presence."
    )


class SystemHealthView(ApiView):
    @describe("System", answer=SystemHealthSerializer)
    def get(self, request: Request) -> Response:
        """The state of tunnels and agents."""
        nodes = registry.nodes()
        return ok(
            {
                "daemons_alive": len(nodes),
                "daemons_draining": sum(node.draining for node in nodes),
                "tunnels_online": sum(node.sessions for node in nodes),
                "own_devices_online": len(registry.lookup_user(str(request.user.pk))),
                "redis_maxmemory_policy": checks.maxmemory_policy(),
            }
        )


class SystemInfoSerializer(serializers.Serializer[Any]):
    version = serializers.CharField()
    commit = serializers.CharField(allow_blank=True, help_text="Of the build; empty when run from a checkout.")
    built_at = serializers.CharField(allow_blank=True)
    python = serializers.CharField()
    migrations = serializers.DictField(child=serializers.CharField(), help_text="App → newest migration applied.")
    features = serializers.DictField(child=serializers.BooleanField())


class SystemInfoView(ApiView):
    @describe("System", answer=SystemInfoSerializer)
    def get(self, request: Request) -> Response:
        """Which build answers, on which schema, with which features on."""
        recorded = MigrationRecorder(connection).migration_qs.order_by("app", "name")
        applied = dict(recorded.values_list("app", "name"))  # of an app's many, the last stays
        values = settings.VISIONA
        return ok(
            {
                "version": settings.VERSION,
                "commit": settings.COMMIT,
                "built_at": settings.BUILT_AT,
                "python": platform.python_version(),
                "migrations": applied,
                "features": {
                    "registration": values["REGISTRATION"] == "open",
                    "static_user": bool(values["STATIC_USER_ID"]),
                    "demo_data": values["SEED_DEMO_DATA"],
                    "oidc": config() is not None,
                    "mail": mails.possible(),
                    "converter": configured(),
                    "s3": bool(values["S3_BUCKET"]),
                },
            }
        )
