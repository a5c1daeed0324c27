"""Text from anywhere (a container, a sender, a file's name), made safe for people to read. Pure.

`one_line` is for a cell, a field or a line: nothing in the text can end that line and begin one of its own.
`clean` is for a body of text, which keeps its lines; its printer marks each line (`block`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

# Whole escape sequences (CSI, OSC and friends, two-byte ones).
_SEQUENCE: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)"
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
# What turns text round, separates lines or is invisible, so that two names look alike. The joiners U+200C and U+200D
# stay: Persian and emoji need them.
_HIDDEN: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e007f"
)
# C0 but tab and newline, DEL, C1 (NEL among them), what is hidden, and lone surrogates.
_CONTROL: Final = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_HIDDEN}\ud800-\udfff]")
_LINE_CONTROL: Final = re.compile(f"[\x00-\x1f\x7f-\x9f{_HIDDEN}\ud800-\udfff]")
_JSON_CONTROL: Final = re.compile(f"[\x7f-\x9f{_HIDDEN}]")
_NAMES: Final = (("\n", "\\n"), ("\t", "\\t"))


def clean(text: object) -> str:
    """Return the text without control characters for a terminal. Keep tabs and newlines."""
    return _CONTROL.sub(_spelled, _SEQUENCE.sub("", str(text)))


def one_line(text: object) -> str:
    """Return the text as one line without control characters. Escape line ends."""
    return _LINE_CONTROL.sub(_spelled, _SEQUENCE.sub("", str(text)))


def block(text: object, first: str = "", rest: str = "    ") -> Iterator[str]:
    """Return the lines of a text, the first one behind `first`, all others behind `rest`.

    So a line of the body starts in a column where no line of ours starts.
    """
    lines = clean(str(text).replace("\r\n", "\n")).split("\n")
    yield first + lines[0]
    for line in lines[1:]:
        yield (rest + line).rstrip()


def escape_json(text: str) -> str:
    """Return JSON text with the same characters escaped. A JSON reader gets them back unchanged."""
    return _JSON_CONTROL.sub(lambda found: json.dumps(found.group())[1:-1], text)


def _spelled(found: re.Match[str]) -> str:
    character = found.group()
    for name, spelled in _NAMES:
        if character == name:
            return spelled
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def room(size: int) -> str:
    """Return a number of bytes as `12 MiB`, or below one of them as `614 KiB`."""
    return f"{size // 1024**2} MiB" if size >= 1024**2 else f"{size // 1024} KiB"


def counted(number: int, one: str, many: str = "") -> str:
    """Return `1 answer` or `2 answers`: the number with its noun, whose plural is `many`, or `one` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
