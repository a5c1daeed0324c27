"""`clawbus logs`: the end of the log across rotated files, filters, and following across rotation."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.cli.log_files import follow, last_lines
from tests.support.command_line import CommandLine


def line(number: int, **fields: object) -> str:
    event = {"timestamp": f"2026-11-21T02:00:{number:02d}.000Z", "level": "info", "event": f"event_{number}", **fields}
    return json.dumps(event) + "\n"


@pytest.fixture
def log(home: Path) -> Path:
    path = home / "data" / "logs" / "clawbus.log"
    path.parent.mkdir()
    path.with_name("clawbus.log.2").write_text(line(1) + line(2))
    path.with_name("clawbus.log.1").write_text(line(3, level="error", agent="a", session="s"))
    path.write_text(
        line(4, agent="a", session="t") + "no json \x1b[31m\n" + line(5, agent="a", session="s", text="\x9b")
    )
    return path


def names(result: dict[str, list[dict[str, str]]]) -> list[str]:
    return [event["event"] for event in result["events"]]


def test_the_end_goes_back_through_rotated_files(cli: CommandLine, log: Path) -> None:
    assert names(cli("logs", "-n", "4").result) == ["event_3", "event_4", "no json \x1b[31m", "event_5"]
    assert names(cli("logs").result)[0] == "event_1"
    assert names(cli("logs", "-n", "0").result) == []


def test_filters_count_what_they_let_through(cli: CommandLine, log: Path) -> None:
    assert names(cli("logs", "--session", "a/s", "-n", "2").result) == ["event_3", "event_5"]
    assert names(cli("logs", "--level", "error").result) == ["event_3"]


def test_events_are_chosen_by_name_or_pattern(cli: CommandLine, log: Path) -> None:
    assert names(cli("logs", "--event", "event_3", "--event", "event_[45]").result) == ["event_3", "event_4", "event_5"]
    assert names(cli("logs", "-e", "event_*", "--session", "a/s").result) == ["event_3", "event_5"]
    assert names(cli("logs", "-e", "container_*").result) == []
    answer = cli("logs", "-e", "container_stukc")
    assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")
    assert "'container_stuck'" in answer.envelope["error"]["message"]


def test_people_see_no_control_byte(cli: CommandLine, log: Path) -> None:
    answer = cli("logs", "--pretty")
    assert "event_5" in answer.out
    assert not {character for character in answer.out if ord(character) < 32 or 127 <= ord(character) < 160} - {"\n"}


def test_raw_is_the_file(cli: CommandLine, log: Path) -> None:
    assert cli("logs", "--raw", "-n", "1").out == line(5, agent="a", session="s", text="\x9b")


def test_no_log_yet_is_no_error(cli: CommandLine) -> None:
    assert cli("logs").result["events"] == []


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 200_000])
def test_lines_across_blocks_come_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log"
    wanted = [b"first", b"x" * size, b"last"]
    path.write_bytes(b"\n".join(wanted) + b"\n")
    assert last_lines(path, 10, lambda _: True) == wanted


def test_following_crosses_rotation_and_loses_nothing(tmp_path: Path) -> None:
    """Every pause writes a little, in the order in which a daemon would rotate."""
    path = tmp_path / "log"
    path.write_bytes(b"old\n")

    def write(text: bytes) -> None:
        with path.open("ab") as stream:
            stream.write(text)

    def rotate() -> None:
        write(b"just before\n")
        path.replace(tmp_path / "log.1")

    steps = [lambda: write(b"one\ntw"), lambda: write(b"o\n"), rotate, lambda: write(b"after\n")]

    def sleep(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    seen: list[bytes] = []
    with pytest.raises(KeyboardInterrupt):
        _collect(follow(path, sleep=sleep), seen)
    assert seen == [b"one", b"two", b"just before", b"after"]


def test_following_waits_for_a_file_and_reads_it_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    steps = [lambda: None, lambda: path.write_bytes(b"first\n"), lambda: path.write_bytes(b"c\n")]

    def sleep(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    seen: list[bytes] = []
    with pytest.raises(KeyboardInterrupt):
        _collect(follow(path, sleep=sleep), seen)
    assert seen == [b"first", b"c"]


def _collect(lines: Iterator[bytes], seen: list[bytes]) -> None:
    for one in lines:
        seen.append(one)  # noqa: PERF402 - what was seen before the end counts
