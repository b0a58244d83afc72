"""What the audit route takes and answers."""

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.audit.models import AuditEvent
from apps.common.api.fields import MomentField
from apps.common.api.views import PageQuery, ordering_field


class AuditQuery(PageQuery):
    ordering = ordering_field("at", default="-at")
    action = serializers.RegexField(
        r"^[a-z_]{1,32}\.[a-z_]{0,31}$",
        required=False,
        default="",
        help_text="One action, e.g. `user.login`; with nothing behind the dot all that begin so.",
    )
    since = MomentField(required=False, help_text="From then on, inclusive.")
    until = MomentField(required=False, help_text="Before then.")


class AuditEventSerializer(serializers.ModelSerializer[AuditEvent]):
    """One act. Of what others did to this account it does not tell who they are, nor where an operator sits."""

    by = serializers.SerializerMethodField(help_text="Who acted.")
    actor = serializers.SerializerMethodField(help_text="The own user's id; empty if another acted.")
    address = serializers.SerializerMethodField(help_text="From where; empty for operators and the system.")
    detail = serializers.JSONField(help_text="What else there is to say, by action.")

    class Meta:
        model = AuditEvent
        fields = ("id", "at", "by", "actor", "action", "object_type", "object_id", "address", "request_id", "detail")

    @extend_schema_field({"type": "string", "enum": ["self", "operator", "stranger", "system"]})
    def get_by(self, event: AuditEvent) -> str:
        if event.actor:
            return "self" if event.actor == self.context["user_id"] else "operator"
        return "stranger" if event.address else "system"

    def get_actor(self, event: AuditEvent) -> str:
        return event.actor if event.actor == self.context["user_id"] else ""

    def get_address(self, event: AuditEvent) -> str:
        return event.address if event.actor in ("", self.context["user_id"]) else ""
