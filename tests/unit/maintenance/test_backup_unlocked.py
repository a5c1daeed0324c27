"""A copy of one of the host's own files, beside whoever writes it: no commit waits for it or fails, and it is whole."""

from pathlib import Path

import pytest

from daemon.core.repair_errors import BackupFailedError
from daemon.maintenance.backup import copy_verified
from schema.connect import open_still_reader
from schema.errors import FileBusyError
from tests.support.impatient_writer import LEFT, RIGHT, begin, impatient_writer, outcome, prepare


def rows(path: Path) -> tuple[int, int]:
    with open_still_reader(path) as reader:
        return (len(reader.all(f"SELECT n FROM {LEFT}")), len(reader.all(f"SELECT n FROM {RIGHT}")))


def test_copies_beside_a_writer_fail_none_of_its_commits(tmp_path: Path) -> None:
    source = tmp_path / "inbound.db"
    prepare(source, wide=2_000_000)
    with impatient_writer(source, 0, pause_every=1) as writer:
        begin(writer)
        copies = [tmp_path / f"{number}.sqlite" for number in range(6)]
        for copy in copies:
            copy_verified(source, copy)
        result = outcome(writer)
    assert result["failed"] == 0, result["errors"]
    for copy in copies:
        left, right = rows(copy)
        assert left == right


def test_a_file_that_is_never_left_alone_is_copied_under_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "inbound.db", tmp_path / "copy.sqlite"
    prepare(source)

    def never(_source: Path, target: Path, _patience: object) -> None:
        target.write_bytes(b"half")
        raise FileBusyError("written to all the time")

    monkeypatch.setattr("daemon.maintenance.backup.copy_unlocked", never)
    assert copy_verified(source, copy).tables == {LEFT: 0, RIGHT: 0}
    assert rows(copy) == (0, 0)


def test_any_other_failure_is_one(tmp_path: Path) -> None:
    source = tmp_path / "inbound.db"
    source.write_bytes(b"not a database, and long enough to be looked at " * 99)
    with pytest.raises(BackupFailedError):
        copy_verified(source, tmp_path / "copy.sqlite")
    assert [one.name for one in tmp_path.iterdir()] == ["inbound.db"]
