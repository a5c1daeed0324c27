"""Keeps an agent's progress notes and standard error in `out/.words`.

A turn that hangs, or that takes its container with it, never reports its failure; these lines are what an operator has
then. They are bounded in rate and in size, and a file that cannot be written fails no turn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from container_runner.logs import Logger
from schema.instants import to_text
from schema.layout import WORDS, WORDS_BEFORE

STDERR: Final = "stderr"
PROGRESS: Final = "progress"
_LONGEST: Final = 1000
_MESSAGES: Final = 10
_FILE: Final = 64 * 1024  # bytes; then the file is rotated, and one older file is kept
# What may be kept at once, and what is added to that each second: an agent that floods must not push out the rest.
_BURST: Final = 64 * 1024
_PER_MS: Final = 4


class Words:
    """Appends lines to one session's file. `now_ms` is epoch milliseconds."""

    def __init__(self, out_folder: Path, incarnation: str, now_ms: Callable[[], int]) -> None:
        self._path = out_folder / WORDS
        self._before = out_folder / WORDS_BEFORE
        self._incarnation = incarnation
        self._now_ms = now_ms
        self._room = float(_BURST)
        self._at = now_ms()

    def keep(self, log: Logger, messages: Sequence[str], kind: str, text: str) -> None:
        """Log and keep what the agent said in the turn of these messages. Never raise. What is too much at once is left out."""
        now = self._now_ms()
        self._room, self._at = min(float(_BURST), self._room + max(0, now - self._at) * _PER_MS), now
        text = text[:_LONGEST].encode("utf-8", "replace").decode("utf-8")
        if not text.strip() or len(text) > self._room:
            return
        self._room -= len(text)
        if kind == STDERR:
            log.info("program_wrote", text=text)
        else:
            log.info("program_progress", text=text)
        fields = {
            "at": to_text(now),
            "incarnation": self._incarnation,
            "messages": list(messages[:_MESSAGES]),
            "kind": kind,
            "text": text,
        }
        try:
            self._append(json.dumps(fields).encode() + b"\n")
        except OSError as error:
            log.debug("words_not_kept", error=str(error))

    def _append(self, line: bytes) -> None:
        # The agent may write to the same folder, so no link is followed and no fifo waited for.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o644)
        try:
            if os.fstat(descriptor).st_size > _FILE:
                self._path.replace(self._before)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
