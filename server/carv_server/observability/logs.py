"""The log: one line a record with the request that it belongs to, as text or as JSON.

What clients send stays out. Records carry names, codes and numbers; an exception keeps its type
and its frames, and of its message what is left once quoted text and arrays are cut out, since
libraries quote their input there.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, TextIO

from carv_server.settings.observability import LogConfig

__all__ = ["CURRENT_CALL", "FIELDS", "CallIdentity", "configure_logging", "formatter"]

_MOST_CHARACTERS = 2000
_MOST_EXCEPTION_CHARACTERS = 300
_MOST_FRAMES = 20
_MOST_CAUSES = 4
_ARRAYS = re.compile(r"\b(?:tensor|array)\(.*", re.DOTALL)
_LISTS = re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|«[^»]*»|“[^”]*”")

_Failure = tuple[type[BaseException], BaseException, TracebackType | None]


class CallIdentity(Protocol):
    """What a record says of the call it was logged in."""

    @property
    def request_id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def teacher(self) -> str: ...
    @property
    def trace_id(self) -> str: ...


CURRENT_CALL: ContextVar[CallIdentity | None] = ContextVar("current_call", default=None)
"""The call whose task this is."""

FIELDS = (
    "time", "level", "logger", "message", "request_id", "tenant", "teacher", "trace_id",
    "method", "code", "reason", "seconds", "violations", "exception",
)  # fmt: skip
"""Of a JSON record, in this order; those without a value are left out."""

_EXTRAS = ("method", "code", "reason", "seconds", "violations")


def configure_logging(config: LogConfig, stream: TextIO = sys.stderr) -> None:
    """Send what is logged anywhere in the process to a stream, warnings too; unless somebody has
    set up logging before."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(config.format))
    # A line for each call and each loop that it sees, at debug.
    if config.level == "debug":
        logging.getLogger("grpc").setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.basicConfig(level=config.level.upper(), handlers=[handler])


def formatter(kind: str) -> logging.Formatter:
    """Args:
    kind: "text" or "json".
    """
    return _Json() if kind == "json" else _Text()


class _Text(logging.Formatter):
    """Time, level, logger and message, as ever; then the request in brackets, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _one_line(record.message)
        line = super().formatMessage(record)
        said = " ".join(f"{name}={value}" for name, value in _call_fields().items())
        return f"{line} [{said}]" if said else line

    def formatException(self, ei: Any) -> str:
        return "\n".join(
            f"{kind}: {message}\n" + "\n".join(f"  {frame}" for frame in frames)
            for kind, message, frames in _failures(ei)
        )


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MOST_CHARACTERS],
            **_call_fields(),
            **{name: record.__dict__[name] for name in _EXTRAS if name in record.__dict__},
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = [
                {"type": kind, "message": message, "frames": frames}
                for kind, message, frames in _failures(record.exc_info)
            ]
        return json.dumps(fields, default=str)


def _call_fields() -> Mapping[str, str]:
    call = CURRENT_CALL.get()
    if call is None:
        return {}
    fields = {"request_id": call.request_id, "tenant": call.tenant, "teacher": call.teacher}
    return {**fields, "trace_id": call.trace_id} if call.trace_id else fields


def _one_line(message: str) -> str:
    """Nobody can begin a line of the log with what they send."""
    return message[:_MOST_CHARACTERS].replace("\r", "\\r").replace("\n", "\\n")


def _failures(failure: _Failure) -> Iterator[tuple[str, str, list[str]]]:
    """Type, message and frames of an exception and of those that it came from."""
    error: BaseException | None = failure[1]
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        yield type(error).__qualname__, _without_content(str(error)), places
        hidden = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or hidden


def _without_content(message: str) -> str:
    cut = _LISTS.sub("[...]", _QUOTED.sub("'...'", _ARRAYS.sub("array(...)", message)))
    return _one_line(cut[:_MOST_EXCEPTION_CHARACTERS])
