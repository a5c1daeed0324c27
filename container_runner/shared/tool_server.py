"""Lets a provider's agent start the MCP server, and detects that the agent knows the tools. Imports little."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import gettempdir
from typing import Final

from container_runner.shared.sent_files import FileSource
from schema.frozen import frozen
from schema.tools import SERVER

_MODULE: Final = "container_runner.tools"


@frozen
class ToolServer:
    """The server's command line. `ready` exists once the agent has listed the tools."""

    arguments: tuple[str, ...]
    ready: Path

    @property
    def entry(self) -> dict[str, object]:
        """The server as ACP's session/new takes it."""
        return {"name": SERVER, "command": sys.executable, "args": list(self.arguments), "env": []}


def tool_server(
    tools: tuple[str, ...], folders: tuple[Path, Path], names: tuple[str, str], incarnation: str, source: FileSource
) -> ToolServer | None:
    """Return the server of the allowed tools, None when none is allowed. `folders` are `in` and `out`; `source` is where files come from."""
    if not tools:
        return None
    ready = Path(gettempdir()) / f"clawbus-tools-{incarnation}"
    settings = {
        "in": str(folders[0]),
        "out": str(folders[1]),
        "agent": names[0],
        "session": names[1],
        "tools": list(tools),
        "ready": str(ready),
        "files": [str(source.home), source.max_files, source.max_bytes],
    }
    return ToolServer(("-I", "-m", _MODULE, json.dumps(settings)), ready)
