"""Structured logs: one event per line on standard error, a dotted constant name, facts as fields."""

import logging
import sys
import threading
from types import TracebackType

import structlog
from structlog.typing import Processor


def configure_logs(level: str = "info", *, process: str = "") -> None:
    """JSON lines, or a line for people where standard error is a terminal. Never a query string, never a token."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        # A line and its end in one write: the processes of a deployment share one standard error.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    if process:
        structlog.contextvars.bind_contextvars(process=process)
    handler = logging.StreamHandler(sys.stderr)
    foreign = [*shared, structlog.stdlib.add_logger_name]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[_strip, renderer], foreign_pre_chain=foreign))
    handler.addFilter(_expected)
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _on_fault
    threading.excepthook = _on_thread_fault


_strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta


def _on_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.stdlib.get_logger().error("process.fault", exc_info=(kind, error, trace))


def _on_thread_fault(fault: threading.ExceptHookArgs) -> None:
    name = fault.thread.name if fault.thread else ""
    structlog.stdlib.get_logger().error("thread.fault", thread=name, exc_info=fault.exc_value)


def _expected(entry: logging.LogRecord) -> bool:
    # A stream that is cut must not look like an end, so its body is broken on purpose; `stream.cut` says why.
    return "without completing response" not in entry.getMessage()
