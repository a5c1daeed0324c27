"""Logging: every event one line with fields, on standard error and as JSON in `<data>/logs/clawbus.log`.

`configure` is called once, at the daemon's start; everything else calls `structlog.get_logger()` in `__init__`,
and `bound(...)` around work for one agent, session, incarnation or message. Logging never raises and never stops the
daemon.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TextIO

import structlog

from daemon.config.models import Logs
from daemon.core.clock import Clock, SystemClock
from daemon.logs.journal_line import journal_line, priority
from daemon.logs.render import EventDict, explain_error, json_line, ordered, pretty_renderer
from daemon.logs.sinks import RotatingFile, Sink, StandardError
from schema.instants import to_text

LOG_FILE: Final = "clawbus.log"

_QUIET_S: Final = 10.0
_MAX_WORDS: Final = 200
_SAME_TEXT: Final = 60  # characters by which texts are distinguished; what follows names objects
_ACCEPTING: Final = re.compile(r"socket\.accept\(\) out of system resource|_accept_connection\(")
_LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
)


@contextmanager
def bound(
    *,
    agent: str | None = None,
    session: str | None = None,
    incarnation: str | None = None,
    message: str | None = None,
) -> Generator[None]:
    """Add these fields to every event of the block, in this task and in the tasks that it starts."""
    fields = {"agent": agent, "session": session, "incarnation": incarnation, "message": message}
    with structlog.contextvars.bound_contextvars(**{key: value for key, value in fields.items() if value is not None}):
        yield


class LogPipeline:
    """What `configure` returns. Thread-safe: worker threads log too."""

    def __init__(
        self, settings: Logs, sinks: Mapping[Sink, Callable[[Mapping[str, object]], bytes]], clock: Clock
    ) -> None:
        self._sinks = sinks
        self._clock = clock
        self._lock = threading.RLock()
        self._threshold = _LEVELS[settings.level]
        self._bridge = _Bridge(logging.WARNING, clock.monotonic)
        self._listeners: tuple[Callable[[Mapping[str, object]], None], ...] = ()
        self._root_before: tuple[int, list[logging.Handler]] | None = None

    @property
    def dropped(self) -> int:
        """Lines that no sink or not every sink could write, since the start."""
        return sum(sink.dropped for sink in self._sinks)

    def set_level(self, level: str) -> None:
        """Set the level (debug, info, warning or error), for existing loggers too."""
        self._threshold = _LEVELS[level]

    def listen(self, listener: Callable[[Mapping[str, object]], None]) -> None:
        """Hand every event on, as it is written, to one who neither waits nor raises. It is called from any thread."""
        self._listeners = (*self._listeners, listener)

    def install(self) -> None:
        """Make structlog and the standard library's logging write here."""
        structlog.configure(
            processors=[self._filter, structlog.contextvars.merge_contextvars, self._finish],
            # The threshold is ours, so that it can change under loggers that are already bound.
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            logger_factory=lambda *_: _Writer(self._write),
            cache_logger_on_first_use=False,
        )
        root = logging.getLogger()
        self._root_before = (root.level, list(root.handlers))
        root.handlers[:] = [self._bridge]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(capture=True)

    def close(self) -> None:
        """Write what is pending, close the file, and leave the process's logging as it was. Safe to call twice."""
        if self._root_before is not None:
            root = logging.getLogger()
            root.level, root.handlers[:] = self._root_before
            self._root_before = None
            logging.captureWarnings(capture=False)
            structlog.reset_defaults()
        with self._lock:
            for sink in self._sinks:
                sink.close()

    def _filter(self, _logger: object, method: str, event: EventDict) -> EventDict:
        level = "error" if method == "exception" else method
        if _LEVELS.get(level, 50) < self._threshold:
            raise structlog.DropEvent
        event["level"] = level
        return event

    def _finish(self, _logger: object, _method: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
        if event.get("exc_info") is True:
            event["exc_info"] = sys.exc_info()
        event["timestamp"] = to_text(self._clock.now_ms())
        return (event,), {}

    def _write(self, event: EventDict) -> None:
        with self._lock:
            try:
                explain_error(event)
                shown = ordered(event)
            except Exception as error:  # noqa: BLE001 - a value whose str() raises must not end the task that logs it
                shown = self._made(
                    "log_event_unprintable", "error", of=str(event.get("event")), because=type(error).__name__
                )
            failing = {sink for sink in self._sinks if sink.failing}
            lines: dict[Callable[[Mapping[str, object]], bytes], bytes] = {}  # two sinks of one form share the work
            for sink, render in self._sinks.items():
                if render not in lines:
                    lines[render] = render(shown)
                self._put(sink, lines[render])
            for listener in self._listeners:
                listener(shown)
            for sink in self._sinks:
                if sink.failing and sink not in failing:
                    self._tell_others(sink)

    def _put(self, sink: Sink, line: bytes) -> None:
        render = self._sinks[sink]

        def recovered(name: str, count: int, reason: str) -> bytes:
            return render(self._made("log_sink_recovered", "warning", sink=name, dropped=count, reason=reason))

        sink.write(line, recovered)

    def _tell_others(self, failed: Sink) -> None:
        for sink in self._sinks:
            if sink is not failed:
                said = self._made("log_sink_failing", "error", sink=failed.name, reason=failed.reason)
                self._put(sink, self._sinks[sink](said))

    def _made(self, event: str, level: str, **fields: object) -> Mapping[str, object]:
        return ordered({"timestamp": to_text(self._clock.now_ms()), "level": level, "event": event, **fields})


def configure(settings: Logs, data_dir: Path | None, stderr: TextIO | None, clock: Clock | None = None) -> LogPipeline:
    """Start logging as [logs] says. `data_dir` None: no file. `stderr` None: the process was started without one.

    Never raises: a file that cannot be written is said on standard error and tried again with each line.
    """
    error_out = StandardError(stderr)
    sinks: dict[Sink, Callable[[Mapping[str, object]], bytes]] = {error_out: _renderer(settings, stderr)}
    if data_dir is not None:
        path = data_dir / "logs" / LOG_FILE
        sinks[RotatingFile(path, settings.file_bytes, settings.file_count)] = json_line
    pipeline = LogPipeline(settings, sinks, clock or SystemClock())
    pipeline.install()
    return pipeline


def _renderer(settings: Logs, stderr: TextIO | None) -> Callable[[Mapping[str, object]], bytes]:
    terminal = _is_terminal(stderr)
    if (settings.format == "pretty" and not _is_journal(stderr)) or (settings.format == "auto" and terminal):
        return pretty_renderer(colors=terminal and "NO_COLOR" not in os.environ)
    if not _is_journal(stderr):
        return json_line
    if settings.format == "json":
        return lambda event: priority(event) + json_line(event)
    return journal_line


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


def _is_journal(stream: TextIO | None) -> bool:
    """Return whether a stream is the journal's own: systemd.exec(5), $JOURNAL_STREAM holds its device and inode."""
    named = os.environ.get("JOURNAL_STREAM", "")
    if stream is None or not named:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


class _Writer:
    """The end of structlog's chain: all its level methods are one."""

    def __init__(self, write: Callable[[EventDict], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.exception = write


class _Bridge(logging.Handler):
    """What libraries say through the standard library, as one of our events, from warning on.

    The same line is logged at most once in ten seconds, with the number of repetitions: a listener without a descriptor
    to spare fails hundreds of times a second, and would turn over every log file within minutes.
    """

    def __init__(self, level: int, monotonic: Callable[[], float]) -> None:
        super().__init__(level)
        self._log = structlog.get_logger()
        self._monotonic = monotonic
        self._said: dict[tuple[str, str, str], tuple[float, int]] = {}  # when last, and how often since

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's wrong format string is not our crash
            text = str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        repeated = self._repeated((record.name, text.partition("\n")[0][:_SAME_TEXT], type(error).__name__))
        if repeated is None:
            return
        more = {"repeated": repeated} if repeated else {}
        if record.name == "asyncio" and _ACCEPTING.search(text):
            self._log.warning("accept_failing", error=str(error), **more)
            return
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(self._log, level)("library_log", logger=record.name, text=text, exc_info=record.exc_info, **more)

    def _repeated(self, words: tuple[str, str, str]) -> int | None:
        """Return how many repetitions were suppressed since the last time, or None to suppress this one too."""
        now = self._monotonic()
        at, count = self._said.get(words, (-math.inf, 0))
        if now - at < _QUIET_S:
            self._said[words] = (at, count + 1)
            return None
        if len(self._said) >= _MAX_WORDS:
            self._said.clear()
        self._said[words] = (now, 0)
        return count
