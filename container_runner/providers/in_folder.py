"""Notices that the agent's folder is not the one in which the container started, and blames no message for that.

A disk that is unmounted, or a folder that is moved away, takes the agent's program with it. The runner then ends, and the
host decides when a container can start again.
"""

from __future__ import annotations

from pathlib import Path

from container_runner.providers.protocol import Answer, Progress, Provider, Turn
from container_runner.shared.errors import CannotStartError, TurnFailedError, TurnStoppedError
from schema.mounts import mount_points


class InFolderProvider:
    """A provider whose failures count only while its agent's folder, and what else is mounted, is in place."""

    def __init__(self, provider: Provider, folder: Path, *, mounted: bool) -> None:
        """`mounted`: this process has mounts of its own, so each of them is the agent's."""
        self._provider = provider
        self._folder = folder
        self._mounted = mounted
        self._began_in = _identity(folder)
        self.accepts_follow_ups = provider.accepts_follow_ups
        self.silence = provider.silence

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Work on the turn. Raise CannotStartError where the folder was replaced or is gone, and as the provider does."""
        self._check()
        try:
            return await self._provider.run(turn, progress)
        except TurnStoppedError:
            raise
        except TurnFailedError:
            self._check()
            if self._mounted and (lost := _removed_mount()) is not None:
                raise CannotStartError(f"{lost} is gone: its folder on the host was removed.") from None
            raise

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()

    def _check(self) -> None:
        if self._began_in is not None and _identity(self._folder) != self._began_in:
            raise CannotStartError(
                f"the agent's folder {self._folder} is gone, or another lies in its place.",
                hint="Put it back, or mount its disk; the message waits meanwhile.",
            )


def _removed_mount() -> Path | None:
    """Return a mounted folder that was removed on the host. A file that was replaced there, as secrets are, does not count."""
    return next((one.path for one in mount_points() if one.removed and one.path.is_dir()), None)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells the folder from another at its path. None if it is gone; a mounted one may have been removed."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_nlink else None
