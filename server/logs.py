"""Logging as JSON lines on stderr, including uvicorn and libraries."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Configure every logger of this process to use one JSON formatter.

    The request id comes from structlog's context variables. JSON escapes control characters, so
    that client input cannot forge log lines.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _without_colour,
            structlog.processors.JSONRenderer(default=str),
        ],
    )
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)
    logging.raiseExceptions = False  # a closed pipe must not stop the service
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for every retry
    logging.getLogger("alembic").setLevel(logging.WARNING)  # two lines before it does anything
    logging.getLogger("uvicorn.access").disabled = True  # the middleware writes that line


def _without_colour(
    logger: object, name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Drop uvicorn's second, coloured copy of the message."""
    event.pop("color_message", None)
    return event
