"""The far end of `remote.py`: reads one request from standard input, does it, and writes one line of JSON.

Runs from a zip in a memory file on a Python that has nothing of ours installed. Steps go to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, Final

from daemon.inngest.operations import operate

# How an ephemeral container sees the files of the one that it was started beside.
_OTHER_ROOT: Final = re.compile(r"(/proc/\d+/root)(/.*)\Z")


def main() -> None:
    """Read one request, print one answer."""
    request = json.loads(sys.stdin.buffer.readline())
    try:
        options = _from_root(request["options"])
    except OSError as error:
        _answer({"failed": f"the other container's files cannot be entered: {error.strerror}. It takes root there."})
        return
    _answer(operate(request["name"], options, _tell))


def _from_root(options: dict[str, Any]) -> dict[str, Any]:
    """Enter the other container's files, if the path is in them: SQLite resolves /proc/PID/root to this one's own root."""
    found = _OTHER_ROOT.match(options["path"])
    if found is None:
        return options
    os.chroot(found[1])
    os.chdir("/")
    return {**options, "path": found[2]}


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, default=str) + "\n")
    sys.stdout.flush()


def _tell(step: str) -> None:
    sys.stderr.write(f"{step}\n")
    sys.stderr.flush()
