"""`python -m container_runner.tools SETTINGS`: serve MCP on standard input and output until the input ends.

SETTINGS is a JSON object: the folders `in` and `out`, the names `agent` and `session`, the allowed `tools`, `ready`, a file
that is made once the agent has listed the tools, and `files`: HOME and the limits of what is sent from there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

from container_runner.shared.sent_files import FileSource
from container_runner.tools.calls import Calls
from container_runner.tools.server import Server
from container_runner.tools.session import ToolSession


def main() -> int:
    """Serve. Return the exit code."""
    settings = cast("dict[str, Any]", json.loads(sys.argv[1]))
    session = ToolSession(
        Path(settings["in"]),
        Path(settings["out"]),
        (settings["agent"], settings["session"]),
        lambda: time.time_ns() // 1_000_000,
    )
    home, max_files, max_bytes = settings["files"]
    calls = Calls(session, frozenset(settings["tools"]), FileSource(Path(home), max_files, max_bytes))
    # Unbuffered: Python aborts when it ends while a thread that still waits for a person holds a buffer's lock.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    Server(calls, Path(settings["ready"]), output).serve(sys.stdin.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
