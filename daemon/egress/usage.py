"""Reads how many tokens an answer cost while it passes. Keeps at most 256 KiB of it. Pure.

The shapes are the providers': Anthropic's Messages (`usage` in the answer, in `message_start` and, cumulative, in
`message_delta`), OpenAI's Chat Completions and Responses (`usage`, in the last chunk or in `response.completed`), Gemini's
`usageMetadata`. Where the service says nothing, an estimate stands in, so that an agent cannot avoid its budget.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from daemon.core.egress_usage import Usage

_KEPT: Final = 256 * 1024
_BYTES_A_TOKEN: Final = 4
_MAX: Final = 10**9  # the most tokens that one answer can plausibly report
_CALLS: Final = re.compile(
    r"(/messages|/completions|/responses|/embeddings|:(stream)?generateContent)\Z", re.IGNORECASE
)
_MENTIONED: Final = re.compile(rb'"usage(Metadata)?"\s*:\s*\{')
_LAST: Final = re.compile(r'(?<!\\)"usage(?:Metadata)?"\s*:\s*(?=\{)')
_IN: Final = (
    ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
    ("prompt_tokens",),
    ("promptTokenCount",),
)
_OUT: Final = (("output_tokens",), ("completion_tokens",), ("candidatesTokenCount", "thoughtsTokenCount"))


def is_model_call(method: str, path: str) -> bool:
    """Return whether a request to this path (without query) is answered by a model, and costs tokens."""
    return method == "POST" and _CALLS.search(path) is not None


class Meter:
    """Of one answer. `stream`: it is server-sent events, not JSON."""

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._cut = False  # the beginning of what was kept is gone
        self._events = 0
        self._in = 0
        self._out = 0
        self._said = False

    def feed(self, piece: bytes) -> None:
        """Take note of a piece of the body."""
        self._kept += piece
        if self._stream:
            self._lines()
        if len(self._kept) > 2 * _KEPT:
            del self._kept[:-_KEPT]
            self._cut = True

    def result(self, *, request_bytes: int, whole: bool) -> Usage:
        """Return the answer's tokens. `whole`: it came to its end."""
        if not self._stream and self._kept:
            self._whole_json()
        if self._said and whole:
            return Usage(self._in, self._out)
        size = self._events if self._stream else len(self._kept) // _BYTES_A_TOKEN
        return Usage(self._in or request_bytes // _BYTES_A_TOKEN, max(self._out, size), estimated=True)

    def _lines(self) -> None:
        *lines, rest = self._kept.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._events += 1
                if _MENTIONED.search(line) and not self._cut:
                    self._note(_parsed(bytes(line[5:])))
            self._cut = False
        self._kept = rest

    def _whole_json(self) -> None:
        content: object = None if self._cut else _parsed(bytes(self._kept))
        if content is None:
            # Too long to be kept: the usage comes behind the answer's text in every shape.
            text = self._kept.decode("utf-8", "replace")
            places = [found.end() for found in _LAST.finditer(text)]
            if places:
                try:
                    content = {"usage": json.JSONDecoder().raw_decode(text, places[-1])[0]}
                except (ValueError, RecursionError):
                    content = None
        for one in cast("list[object]", content) if isinstance(content, list) else [content]:
            self._note(one)

    def _note(self, content: object) -> None:
        """Take the usage out of an answer or an event. Later ones are cumulative: the largest counts."""
        if not isinstance(content, dict):
            return
        found = cast("Mapping[str, object]", content)
        for holder in (found, found.get("message"), found.get("response")):
            if not isinstance(holder, dict):
                continue
            inner = cast("Mapping[str, object]", holder)
            usage = inner.get("usage") or inner.get("usageMetadata")
            if isinstance(usage, dict):
                counts = cast("Mapping[str, object]", usage)
                self._said = True
                self._in = max(self._in, *(_sum(counts, names) for names in _IN))
                self._out = max(self._out, *(_sum(counts, names) for names in _OUT))


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _sum(counts: Mapping[str, object], names: tuple[str, ...]) -> int:
    values = (counts.get(name) for name in names)
    return sum(
        value for value in values if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX
    )
