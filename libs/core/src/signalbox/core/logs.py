"""Structured logs: one event a line, constant names, ids as fields. Never a token, a key, a prompt or a completion."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from signalbox.core.absent import absent

with absent("rich"):    # draws exceptions in colour; ours are plain text before they get there
    import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(room: str, level: str, fmt: str) -> None:
    """Send structlog's and the standard library's events of this process to stderr, marked with `room`."""

    def add_room(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["room"] = room
        return event

    render: Any = structlog.processors.JSONRenderer() if fmt == "json" else structlog.dev.ConsoleRenderer(colors=False)
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_room,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=render, foreign_pre_chain=shared))
    logging.basicConfig(level=max(_LEVELS[level], logging.WARNING), handlers=[handler], force=True)


def logger(name: str) -> Any:
    """Return the logger of one module; `name` appears as the field `module`."""
    return structlog.get_logger(module=name)
