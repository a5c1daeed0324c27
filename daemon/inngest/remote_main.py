"""The far end of `remote.py`: reads one request from standard input, does it, and writes one line of JSON.

Runs from a zip in a memory file on a Python that has nothing of ours installed. Steps go to standard error.
"""

from __future__ import annotations

import json
import sys

from daemon.inngest.operations import operate


def main() -> None:
    """One request, one answer."""
    request = json.loads(sys.stdin.buffer.readline())
    answer = operate(request["name"], request["options"], _tell)
    sys.stdout.write(json.dumps(answer, default=str) + "\n")
    sys.stdout.flush()


def _tell(step: str) -> None:
    sys.stderr.write(f"{step}\n")
    sys.stderr.flush()
