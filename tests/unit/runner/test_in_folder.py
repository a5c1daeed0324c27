"""A turn that fails is charged to nobody where the agent's folder, or another that is mounted, is gone."""

from pathlib import Path

import pytest

from container_runner.providers.in_folder import InFolderProvider
from container_runner.providers.protocol import Answer, DeclaredTimeout, Progress, Turn
from container_runner.shared.errors import CannotStartError, CommandExitError, TurnFailedError
from schema import mounts
from tests.integration.runner.test_command import TURN, Recorder

MOUNT = "93 76 254:0 {root} {point} rw,relatime - ext4 /dev/vda rw\n"


class Failing:
    accepts_follow_ups = False
    silence: DeclaredTimeout | None = None

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        del turn, progress
        raise CommandExitError("it failed.")

    async def close(self) -> None:
        """Nothing to close."""


async def run(folder: Path, *, mounted: bool = True) -> None:
    await InFolderProvider(Failing(), folder, mounted=mounted).run(TURN, Recorder())


@pytest.mark.anyio
async def test_a_failure_in_place_counts(tmp_path: Path) -> None:
    with pytest.raises(TurnFailedError):
        await run(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_folder_that_is_gone_or_another_is_noticed_before_the_turn(tmp_path: Path, replaced: bool) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    provider = InFolderProvider(Failing(), folder, mounted=True)
    folder.rename(tmp_path / "away")
    if replaced:
        folder.mkdir()
    with pytest.raises(CannotStartError, match="gone, or another"):
        await provider.run(TURN, Recorder())


@pytest.mark.anyio
async def test_a_mounted_folder_that_was_removed_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNT.format(root="/srv/data//deleted", point=tmp_path))
    monkeypatch.setattr(mounts, "_TABLE", table)
    with pytest.raises(CannotStartError, match="its folder on the host was removed"):
        await run(tmp_path)
    with pytest.raises(TurnFailedError):
        await run(tmp_path, mounted=False)
    spaced = tmp_path / "my data"
    spaced.mkdir()
    table.write_text(MOUNT.format(root="/srv/data//deleted", point=str(spaced).replace(" ", r"\040")))
    with pytest.raises(CannotStartError, match="my data is gone"):
        await run(tmp_path)
    key = tmp_path / "key"
    key.touch()
    table.write_text(MOUNT.format(root="/srv/key//deleted", point=key))
    with pytest.raises(TurnFailedError):  # a file that was written anew, as secrets are
        await run(tmp_path)
