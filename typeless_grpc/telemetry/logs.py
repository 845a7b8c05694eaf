"""Log lines: one event each, as text or JSON, with the ids of the request and of its trace.

They never contain audio or keys, and text only if `log_text` is set.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from typeless_grpc.telemetry.context import request_id, trace_id

# One list that is changed in place, because loggers keep it from their first line on and must follow a new format.
_processors: list[Processor] = []

GRPC_CORE = "grpc._cython.cygrpc"
# How grpc's errors about its clients begin, with a traceback each: a client that disconnects during a response or an
# error, and headers that are not UTF-8, which may be a mistyped key.
CLIENTS_FAULTS = (
    "ExecuteBatchError raised in core",
    "Failed sending error status from server",
    "Invalid encoding on ",
    "Unexpected [UnicodeDecodeError] raised by servicer method",
)

LogFormat = Literal["auto", "text", "json"]


def configure(level: str, log_format: LogFormat) -> None:
    """Write log lines of this package and of its libraries to stderr. May be called again.

    level: the lowest severity to write, "debug", "info", "warning" or "error". Libraries log from "warning" on.
    """
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        _add_ids,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if as_json else _as_it_is,
    ]
    renderer = structlog.processors.JSONRenderer() if as_json else _for_people()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
        )
    )
    handler.addFilter(_is_no_fault_of_a_client)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("typeless_grpc").setLevel(level.upper())
    _processors[:] = [
        structlog.stdlib.filter_by_level,
        *shared,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]
    structlog.configure(
        processors=_processors,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _is_no_fault_of_a_client(record: logging.LogRecord) -> bool:
    """Drop errors with which any client could fill the log."""
    return record.name != GRPC_CORE or not record.getMessage().startswith(CLIENTS_FAULTS)


def _for_people() -> Processor:
    # The default formatter prints the variables of every frame, among them keys and callers' data.
    plain = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger for the module `name`. Its methods take an event and its facts as keywords."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _add_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if current := request_id.get():
        event["request_id"] = current
    if trace := trace_id.get():
        event["trace_id"] = trace
    return event


def _as_it_is(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return event
