"""The names of the tools that the MCP server in the container has: the host checks the configuration by them."""

from __future__ import annotations

from typing import Final

SERVER: Final = "clawbus"
TOOLS: Final = (
    "send_message", "edit_message", "ask_user", "react", "request_change", "list_destinations", "read_history",
    "schedule", "list_schedules", "change_schedule",
)  # fmt: skip
