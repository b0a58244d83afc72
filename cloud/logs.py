"""JSON log lines on stderr, ours and everybody else's alike, with the request's id and without secrets.

No line holds a query string or a token: ours log paths alone, and what libraries say is masked
(apps.common.observability.log_line, which writes each request's line itself).
"""

import logging
import logging.config
import sys
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from apps.common.observability.log_line import dumps, mask_values


def _mask_values(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    mask_values(event)
    return event


def _dumps(event: EventDict, **_options: Any) -> str:
    return dumps(event).decode(errors="replace")


def _name_part(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """A failure that only says which part is down is a line with its code: no trace says more, and no bug is in it."""
    told = event.get("exc_info")
    if not told:
        return event
    from apps.common.http.error_mapping import unavailable  # noqa: PLC0415 - it needs the settings, which name this module

    error = told if isinstance(told, BaseException) else (told if isinstance(told, tuple) else sys.exc_info())[1]
    part = None if error is None else unavailable(error)
    if part is not None:
        event.update(exc_info=None, level="warning", code=part.code)
        event.setdefault("error", type(error).__name__)
    return event


_SHARED: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    _name_part,
    structlog.processors.format_exc_info,
]


def configure(config: dict[str, Any]) -> None:
    """Django's LOGGING_CONFIG; `config` is `{"level": "debug" | "info" | "warning" | "error"}`."""
    level = str(config["level"]).upper()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": [structlog.stdlib.ExtraAdder([]), *_SHARED],
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        _mask_values,
                        structlog.processors.JSONRenderer(serializer=_dumps),
                    ],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": level, "handlers": ["stderr"]},
            "loggers": {
                "django": {"level": level if level != "DEBUG" else "INFO", "propagate": True},
                # Our own line tells every answer, and apps.common.http.error_mapping every crash with its trace.
                "django.request": {"level": "CRITICAL"},
                "urllib3": {"level": "WARNING"},
                "fido2": {"level": "WARNING"},  # it tells each credential's id
                # One line for each task at every import says nothing.
                "procrastinate.periodic": {"level": "WARNING"},
                "procrastinate.blueprints": {"level": "WARNING"},
            },
        }
    )
