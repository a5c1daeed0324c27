"""The kept output of a session's containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.runtimes import output_log


def write(path: Path, data: bytes, max_bytes: int) -> None:
    handle = output_log.open_for_append(path, max_bytes=max_bytes, keep=3)
    os.write(handle, data)
    os.close(handle)


def test_it_appends_and_rotates_by_size_and_keeps_three(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "container.log"
    for number in range(6):
        write(log, b"%d" % number * 4, max_bytes=3)
    texts = {path.name: path.read_text(encoding="ascii") for path in log.parent.iterdir()}
    assert texts == {
        "container.log": "5555",
        "container.log.1": "4444",
        "container.log.2": "3333",
        "container.log.3": "2222",
    }
    write(log, b"6", max_bytes=100)
    assert log.read_text(encoding="ascii") == "55556"


def test_it_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "container.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        output_log.open_for_append(tmp_path / "container.log")
    assert output_log.tail(tmp_path / "container.log", start=0, max_bytes=10) == ""
    assert not (tmp_path / "elsewhere").exists()


def test_a_tail_begins_where_this_container_began(tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    log.write_bytes(b"before|after")
    assert output_log.tail(log, start=7, max_bytes=100) == "after"
    assert output_log.tail(log, start=7, max_bytes=2) == "er"
    assert output_log.tail(log, start=12, max_bytes=2) == ""
    assert output_log.tail(log, start=100, max_bytes=2) == "er", "it was cut since"


def test_nothing_is_kept_for_a_session_that_is_gone(tmp_path: Path) -> None:
    output_log.append(tmp_path / "gone" / "container.log", b"x")
    assert not (tmp_path / "gone").exists()
    output_log.append(tmp_path / "container.log", b"x")
    assert (tmp_path / "container.log").read_bytes() == b"x"


def test_a_log_that_grows_under_a_living_process_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    process = output_log.open_for_append(log)
    try:
        for number in range(6):
            os.write(process, b"%d" % number * 4)
            assert output_log.cut(log, max_bytes=3, keep=3)
        os.write(process, b"7")
        assert not output_log.cut(log, max_bytes=3, keep=3)
    finally:
        os.close(process)
    texts = {path.name: path.read_text(encoding="ascii") for path in log.parent.iterdir()}
    assert texts == {
        "container.log": "7",
        "container.log.1": "5555",
        "container.log.2": "4444",
        "container.log.3": "3333",
    }


def test_cutting_follows_no_link_and_makes_nothing(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"x" * 100)
    (tmp_path / "container.log").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        output_log.cut(tmp_path / "container.log", max_bytes=3)
    assert elsewhere.stat().st_size == 100
    assert not output_log.cut(tmp_path / "none.log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["container.log", "elsewhere"]
