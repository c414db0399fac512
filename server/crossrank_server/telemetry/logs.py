"""Format every log line of the process, libraries' included: as text for people or as JSON for machines.

While a request is handled, an exception is logged with its type and traceback, without its message: exceptions of
parsers and codecs quote their input, which is the caller's text. The messages of engines, which never see text, and of
the operating system (a full disk) are kept.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import traceback
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.orjson import OrjsonFormatter

from crossrank.errors import CrossrankError

# Id of the request that the running task handles; empty outside of requests.
current_request: contextvars.ContextVar[str] = contextvars.ContextVar("current_request", default="")

# Attributes of a record that are not given as `extra`; color_message is uvicorn's second copy for terminals.
_NOT_FACTS = frozenset([*RESERVED_ATTRS, "message", "asctime", "color_message"])
_log = logging.getLogger("crossrank")


def configure_logging(level: str, style: Literal["text", "json"]) -> None:
    """Send every logger's lines to stderr in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        logging.getLogger("onnx_ir").setLevel(logging.WARNING)  # which counts the nodes that it removes


class TextFormatter(logging.Formatter):
    """Format a record as `time LEVEL logger message name=value ...`, with exceptions below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the exception below it."""
        record.exc_text = None  # another formatter's, with messages
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, with the values of `extra` at its end."""
        facts = [f"{name}={value}" for name, value in vars(record).items() if name not in _NOT_FACTS]
        return " ".join([super().formatMessage(record), *facts])

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return a traceback, without messages that may hold text of a request."""
        return described_exception(ei[1])


class JsonFormatter(OrjsonFormatter):
    """Format a record as one JSON object: time, level, logger, message, and the values of `extra`."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
            reserved_attrs=list(_NOT_FACTS),
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Add the id of the request that a line belongs to."""
        if "request_id" not in log_data and (request_id := current_request.get()):
            log_data["request_id"] = request_id
        return log_data

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return a traceback, without messages that may hold text of a request."""
        return described_exception(ei[1])


def described_exception(error: BaseException | None) -> str:
    """Return the tracebacks of an exception and of its causes, the first cause first."""
    if error is None:
        return ""
    if not current_request.get():
        return "".join(traceback.format_exception(error)).rstrip("\n")
    parts: list[str] = []
    while error is not None and len(parts) < 10:
        own = isinstance(error, OSError) or (isinstance(error, CrossrankError) and error.http_status >= 500)
        message = f": {error}" if own else " (message hidden: it may quote the request)"
        kind = type(error)
        parts.append(
            f"Traceback (most recent call last):\n{''.join(traceback.format_tb(error.__traceback__))}"
            f"{kind.__module__}.{kind.__qualname__}{message}"
        )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nled to\n\n".join(reversed(parts))


def log_loop_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that no task awaited; asyncio's own handler would write it with its message."""
    token = current_request.set(current_request.get() or "unknown")
    try:
        _log.error("%s", context.get("message", "unhandled exception"), exc_info=context.get("exception"))
    finally:
        current_request.reset(token)
