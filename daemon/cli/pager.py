"""Shows text that is longer than the terminal in a pager, as git and systemctl do.

A pager that is missing, fails to start or is left early changes nothing else: neither the exit code nor what was done.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping
from typing import Final

from daemon.cli.output import Output

VARIABLES: Final = ("CLAWBUS_PAGER", "PAGER")
_USUAL: Final = ("less", "more")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_LESS: Final = "FRX"  # leave where it fits, show colours, keep the text on the screen
_TALKS: Final = frozenset({"send", "chat", "serve"})  # who runs these waits for their last line
_NOT_RUN: Final = frozenset({126, 127})  # of a shell, or of `env`: the program is not there


def pager_for(command: str, environment: Mapping[str, str]) -> list[str] | None:
    """Return the pager's command line for a command's text on this standard output, or None to print it directly."""
    if command in _TALKS or environment.get("TERM", "dumb") == "dumb" or not Output().isatty():
        return None
    named = next((environment[name] for name in VARIABLES if name in environment), None)
    if named is None:
        return next(([program] for program in _USUAL if shutil.which(program) is not None), None)
    try:
        words = shlex.split(named)
    except ValueError:  # an open quote
        return None
    return None if not words or words == ["cat"] or shutil.which(words[0]) is None else words


def show(text: str, pager: list[str], environment: Mapping[str, str]) -> None:
    """Print the text, in the pager when it is longer than the terminal. Raise OutputLostError."""
    if not _is_long(text) or not _paged(text, pager, environment):
        Output().write(text)
        Output().flush()


def _is_long(text: str) -> bool:
    width, height = shutil.get_terminal_size()
    lines = _COLOUR.sub("", text).splitlines()
    return sum(max(1, -(-len(line) // max(1, width))) for line in lines) >= height  # the shell's prompt needs one


def _paged(text: str, pager: list[str], environment: Mapping[str, str]) -> bool:
    """Run the pager until it ends. Return False where it could not be started."""
    with _uninterrupted():
        try:
            process = subprocess.Popen(pager, stdin=subprocess.PIPE, env={"LESS": _LESS, "LV": "-c", **environment})
        except OSError:
            return False
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it was left before the end
            process.stdin.write(text.encode(Output().encoding, "backslashreplace"))
        with contextlib.suppress(OSError):
            process.stdin.close()
        return process.wait() not in _NOT_RUN


@contextlib.contextmanager
def _uninterrupted() -> Generator[None]:
    """Leave Ctrl-C to the pager. Not by ignoring it: the pager would inherit that."""
    before = signal.signal(signal.SIGINT, _nothing)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _nothing(number: int, frame: object) -> None:
    """Handle a signal by going on."""
