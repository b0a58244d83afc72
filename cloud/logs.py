"""JSON log lines on stderr, ours and everybody else's alike, with the request's id and without secrets.

No line holds a query string or a token: ours log paths alone, and what libraries say is masked
(apps.common.log_line, which writes each request's line itself).
"""

import logging
import logging.config
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from apps.common.log_line import dumps, mask_values


def _mask_values(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    mask_values(event)
    return event


def _dumps(event: EventDict, **_options: Any) -> str:
    return dumps(event).decode(errors="replace")


_SHARED: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
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
                # Our own line tells every answer, and apps.common.failures every crash with its trace.
                "django.request": {"level": "CRITICAL"},
                "urllib3": {"level": "WARNING"},
                # One line for each task at every import says nothing.
                "procrastinate.periodic": {"level": "WARNING"},
                "procrastinate.blueprints": {"level": "WARNING"},
            },
        }
    )
