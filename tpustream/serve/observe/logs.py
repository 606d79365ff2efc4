"""Log lines, as text or as one JSON object each. A request is one line when it is over.

Lines say who, what and how long; neither prompts nor answers nor credentials are passed to the log,
whatever its level. Paths are written as they came over the wire, without their query.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from tpustream.serve.exchange import Exchange

FORMATS = ("text", "json")
QUIET_PATHS = ("/health", "/ready", "/metrics")  # asked every few seconds: shown at level DEBUG
LONGEST_PATH = 200

_log = logging.getLogger(__name__)


def log_exchange(scope: Scope, exchange: Exchange) -> None:
    """Write the line of a request that is over."""
    path = (scope.get("raw_path") or b"").decode("latin-1")[:LONGEST_PATH]
    level = logging.DEBUG if path in QUIET_PATHS else logging.INFO
    if not _log.isEnabledFor(level):
        return
    method = scope.get("method", scope["type"])
    fields = {
        "request_id": exchange.request_id,
        "method": method,
        "path": path,
        "status": exchange.status,
        "seconds": round(time.monotonic() - exchange.arrived, 4),
        "client": exchange.client.name or None,
        "error": exchange.error,
        "prompt_tokens": exchange.prompt_tokens or None,
        "completion_tokens": exchange.completion_tokens or None,
        "first_token_seconds": None if exchange.first_token is None else round(exchange.first_token, 4),
        "finishes": ",".join(exchange.finishes) or None,
    }
    told = {name: value for name, value in fields.items() if value is not None}
    _log.log(level, "request", extra={"fields": told})


class TextFormatter(logging.Formatter):
    """`TIME LEVEL MESSAGE name=value ...`."""

    def __init__(self):
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record, with its fields after the message."""
        fields = _fields(record)
        return " ".join([super().formatMessage(record), *(f"{name}={fields[name]}" for name in fields)])


class JsonFormatter(logging.Formatter):
    """An object with time (seconds since 1970), level, logger, message, the record's fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The object of a record, on one line."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def install_logs(form: str) -> None:
    """Send this process's log to stderr in one of FORMATS: ours from INFO on, others from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tpustream").setLevel(logging.INFO)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "fields", {})
