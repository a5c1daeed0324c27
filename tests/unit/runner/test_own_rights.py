"""The runner's files in out/ after an agent's chmod, and after it put something else in their place."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from container_runner.heartbeat import Heartbeat
from container_runner.shared.own_rights import give_rights_back

NAMES = ("outbound.db", "outbound.db-journal", ".heartbeat", ".words", ".words.1")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "outbox").mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text("x")
    for path in (folder, folder / "outbox"):
        path.chmod(0o755)
    return folder


def rights(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mode", [0, 0o444, 0o555])
def test_every_right_is_given_back(out: Path, mode: int) -> None:
    for path in (*(out / name for name in NAMES), out / "outbox", out):
        path.chmod(mode)
    assert set(give_rights_back(out)) == {"out", "outbox", *NAMES}
    for name in NAMES:
        assert rights(out / name) & 0o644 == 0o644
    assert rights(out) == rights(out / "outbox") == 0o755
    assert give_rights_back(out) == []


def test_what_is_fine_is_left_alone(out: Path) -> None:
    (out / "outbox").chmod(0o777)
    (out / "outbound.db").chmod(0o666)
    assert give_rights_back(out) == []
    assert rights(out / "outbox") == 0o777


PUT: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("/nowhere"),
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("kind", [*PUT, "file"])
def test_what_is_no_folder_in_place_of_the_outbox_goes(out: Path, kind: str) -> None:
    (out / "outbox").rmdir()
    {**PUT, "file": Path.touch}[kind](out / "outbox")
    assert give_rights_back(out) == ["outbox"]
    assert not os.path.lexists(out / "outbox")


@pytest.mark.parametrize("kind", [*PUT, "folder"])
def test_a_heartbeat_is_touched_though_something_else_was_in_its_place(out: Path, kind: str) -> None:
    path = out / ".heartbeat"
    path.unlink()
    {**PUT, "folder": lambda path: (path / "deep").mkdir(parents=True)}[kind](path)
    Heartbeat(out, structlog.get_logger()).touch(5_000)
    assert stat.S_ISREG(path.lstat().st_mode)
    assert path.stat().st_mtime == 5


@pytest.mark.parametrize("kind", [*PUT, "folder"])
def test_what_is_in_place_of_the_database_is_for_the_host_to_judge(out: Path, kind: str) -> None:
    path = out / "outbound.db"
    path.unlink()
    {**PUT, "folder": Path.mkdir}[kind](path)
    before = path.lstat()
    assert give_rights_back(out) == []
    assert path.lstat() == before


def test_a_link_is_not_followed(out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("x")
    other.chmod(0o400)
    (out / ".words").unlink()
    (out / ".words").symlink_to(other)
    assert give_rights_back(out) == [".words"]
    assert rights(other) == 0o400


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert give_rights_back(tmp_path / "none") == []
