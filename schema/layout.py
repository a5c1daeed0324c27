"""The layout of a session folder, on the host and as mounted in its container.

Two folders for the files of the bus, because a container that could create `inbound.db-journal` could roll the host's own file back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from schema.frozen import frozen

CENTRAL_DB: Final = "central.db"  # beside the session folders: the registry
MAILBOX_DB: Final = "mailbox.db"  # there too: answers on the channel `local`
INBOUND_DB: Final = "inbound.db"
OUTBOUND_DB: Final = "outbound.db"
HEARTBEAT: Final = ".heartbeat"
INBOX_FILES: Final = "inbox"  # in/inbox/<message id>/: what came with a message
OUTBOX_FILES: Final = "outbox"  # out/outbox/<message id>/: what goes with an answer
SENT_FILES: Final = "sent"  # sent/<message id>/: the host's copies of what goes with an answer; not mounted
BELL: Final = ".bell"
WORDS: Final = ".words"  # out/.words: what the agent wrote besides its answers, one JSON object per line
WORDS_BEFORE: Final = ".words.1"

CONTAINER_WORKSPACE: Final = "/workspace"
CONTAINER_IN: Final = "/workspace/in"
CONTAINER_OUT: Final = "/workspace/out"
CONTAINER_AGENT: Final = "/workspace/agent"
CONTAINER_HOME: Final = "/workspace/home"
CONTAINER_GATE: Final = "/run/clawbus"  # read-only; holds GATE_SOCKET, and only where the agent has a way out
GATE_SOCKET: Final = "egress.sock"
CONTAINER_SECRETS: Final = "/run/secrets"

ENV_INCARNATION: Final = "CLAWBUS_INCARNATION"
ENV_RUNNER: Final = "CLAWBUS_RUNNER"  # JSON of RunnerSettings, written by the daemon, read by the runner
ENV_IN: Final = "CLAWBUS_IN"  # default CONTAINER_IN
ENV_OUT: Final = "CLAWBUS_OUT"  # default CONTAINER_OUT
ENV_AGENT: Final = "CLAWBUS_AGENT"  # default CONTAINER_AGENT
ENV_GATE: Final = "CLAWBUS_GATE"  # default CONTAINER_GATE
ENV_AGENT_NAME: Final = "CLAWBUS_AGENT_NAME"  # the agent group's name, for the runner's log and its programs
ENV_SESSION_NAME: Final = "CLAWBUS_SESSION_NAME"
# Before the names of variables for the agent's program alone: the runner's own process must not load what they name.
FOR_THE_PROGRAM: Final = "CLAWBUS_PROGRAM_"
FOR_THE_LOADER: Final = "LD_"  # LD_PRELOAD, LD_LIBRARY_PATH, ...

# A runner's exit code: this container cannot start programs (EX_OSERR of sysexits.h). The runner has released its claims.
CANNOT_START_CODE: Final = 71


@frozen
class SessionFolder:
    """One session's folder. `root` is `<data>/sessions/<agent>/<session>`."""

    root: Path

    @property
    def inbox(self) -> Path:
        """Mounted read-only: `in/`."""
        return self.root / "in"

    @property
    def outbox(self) -> Path:
        """Mounted read-write, hostile: `out/`."""
        return self.root / "out"

    @property
    def home(self) -> Path:
        """Mounted read-write, hostile: `home/`, the HOME of the agent in this session alone."""
        return self.root / "home"

    @property
    def logs(self) -> Path:
        """Not mounted: what the session's containers wrote to stderr, rotated."""
        return self.root / "logs"

    @property
    def inbound_db(self) -> Path:
        """The host's file."""
        return self.inbox / INBOUND_DB

    @property
    def outbound_db(self) -> Path:
        """The container's file."""
        return self.outbox / OUTBOUND_DB
