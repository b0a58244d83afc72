"""`GET /api/audit`."""

from typing import ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from apps.audit import selectors
from apps.audit.api.serializers import AuditEventSerializer, AuditQuery
from apps.common.api.schema import describe
from apps.common.api.views import ApiView


class AuditView(ApiView):
    query_classes: ClassVar = {"GET": AuditQuery}

    @describe("Audit", answer=AuditEventSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own acts, and what others did to this account: failed logins, an operator's changes."""
        asked = self.query
        rows = selectors.events_of(
            self.user.pk, action=asked["action"], since=asked.get("since"), until=asked.get("until")
        )
        context = {"user_id": str(self.user.pk)}
        return self.page(rows, lambda found: list(AuditEventSerializer(found, many=True, context=context).data))
