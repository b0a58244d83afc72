"""gunicorn's log as JSON lines, shaped like the app's (cloud.logs): no query, and the request id where there is one."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gunicorn.glogging import Logger

from apps.common.observability.log_line import mask

_FACTS: Final = ("request_id", "code", "status", "detail", "address", "method", "path", "bytes", "ms")


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, event, the facts given as `extra`, and the traceback of an error."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        line: dict[str, Any] = {
            "event": mask(record.getMessage()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "time": at,
            "pid": record.process,
        }
        line |= {name: getattr(record, name) for name in _FACTS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = mask(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class JsonLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """`logger_class`. The access log (`accesslog`) is off by default: the app writes a line a request itself."""

    def setup(self, cfg: Any) -> None:
        """As gunicorn, with our formatter on both logs."""
        super().setup(cfg)
        for log in (self.error_log, self.access_log):
            for handler in log.handlers:
                handler.setFormatter(JsonFormatter())

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """One line an answer, where the access log is on."""
        if not self.access_log_enabled:
            return
        status = (resp.status or "0").split(None, 1)[0]
        facts = {
            "request_id": environ.get("HTTP_X_REQUEST_ID", ""),
            "status": int(status),
            "address": environ.get("REMOTE_ADDR", ""),
            "method": req.method,
            "path": mask(req.path),
            "bytes": resp.sent,
            "ms": round(request_time.total_seconds() * 1000, 1),
        }
        self.access_log.info("access", extra=facts)
