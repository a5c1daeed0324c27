"""The names and paths in a data folder, also for the command line. Nothing here opens, creates or checks a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from schema.layout import CENTRAL_DB, MAILBOX_DB

LOCK_NAME: Final = "clawbus.lock"
VERSION_NAME: Final = "clawbus.version"
INSTALL_NAME: Final = "install-id"
INSTALL_RECORD: Final = "install.json"


def restoring(root: Path) -> Path:
    """Return the folder in which a restore makes the data folder `root`, before it takes its place."""
    return root.with_name(f"{root.name}.restoring")


class Layout:
    """The paths in a data folder, also for the command line. Nothing is opened, created or checked."""

    def __init__(self, root: Path) -> None:
        self.root: Final = root

    @property
    def central_db(self) -> Path:
        """The registry: sessions and incarnations."""
        return self.root / CENTRAL_DB

    @property
    def install_file(self) -> Path:
        """The install's id, beside central.db, so that it outlives it."""
        return self.root / INSTALL_NAME

    @property
    def install_record(self) -> Path:
        """Where the install's id was given, and on which engine its containers run (store/install.py)."""
        return self.root / INSTALL_RECORD

    @property
    def mailbox_db(self) -> Path:
        """Answers on the `local` channel."""
        return self.root / MAILBOX_DB

    @property
    def sessions_dir(self) -> Path:
        """`<agent>/<session>/`: see schema.layout.SessionFolder."""
        return self.root / "sessions"

    @property
    def agents_dir(self) -> Path:
        """`<agent>/`: an agent group's own files, mounted at /workspace/agent."""
        return self.root / "agents"

    @property
    def logs_dir(self) -> Path:
        """clawbus.log and its predecessors."""
        return self.root / "logs"

    @property
    def run_dir(self) -> Path:
        """Files that matter only while something runs."""
        return self.root / "run"

    @property
    def wheels_dir(self) -> Path:
        """The wheels that image builds were made from, kept so that the next build needs no network."""
        return self.root / "wheels"

    @property
    def lock_file(self) -> Path:
        """Held by the daemon."""
        return self.root / LOCK_NAME
