"""Presets of ACP agents: a command line, a mode and an environment for each, and nothing more.

A preset saves typing: every value can be set in `[agents.NAME]` instead, and what is set there wins. The program itself
must be in the agent's image (docs/agents.md, examples/agents).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Final

from schema.frozen import frozen


@frozen
class Preset:
    """One agent: how it is started to speak the protocol, and the mode in which it asks before it acts."""

    command: tuple[str, ...]
    mode: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


# Sources, November 2026, each agent run once through this protocol:
# claude    npm @agentclientprotocol/claude-agent-acp 0.101. Without a mode it starts in `auto`, where a model decides about
#           tools; `default` asks. The variables turn off updates and telemetry (code.claude.com/docs/en/settings).
# codex     npm @agentclientprotocol/codex-acp 2.6, modes in its dist/index.js. In its default, `agent`, a model reviews tools;
#           `workspace-write` asks before it leaves the folder.
# gemini    npm @google/gemini-cli 0.61: `--acp` (`--experimental-acp` is deprecated).
# opencode  npm opencode-ai 1.18: `opencode acp`; its modes are its agents, `build` and `plan`.
# qwen      npm @qwen-code/qwen-code 0.24: `--acp`, as Gemini CLI, from which it was forked.
# hermes    PyPI hermes-agent[acp,mcp] 0.19: `hermes-acp`; acp_adapter/server.py. `default` asks before edits. Whether a
#           dangerous command is asked about is `approvals.mode` of its config.yaml, which the example sets to `manual`.
PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "claude": Preset(
            ("claude-agent-acp",),
            "default",
            MappingProxyType({"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}),
        ),
        "codex": Preset(("codex-acp",), "workspace-write"),
        "gemini": Preset(("gemini", "--acp"), "default"),
        "opencode": Preset(("opencode", "acp"), "build", MappingProxyType({"OPENCODE_DISABLE_AUTOUPDATE": "1"})),
        "qwen": Preset(("qwen", "--acp"), "default"),
        "hermes": Preset(("hermes-acp",), "default"),
    }
)
