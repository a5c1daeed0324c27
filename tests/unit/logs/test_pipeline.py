"""Logging: what a line holds, where it goes, and that nothing can make it raise."""

import io
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from daemon.config.models import Logs
from daemon.core.errors import ImageError
from daemon.logs.pipeline import LogPipeline, _Bridge, bound, configure
from daemon.logs.render import MAX_TEXT, REDACTED, json_line, plain, pretty_renderer
from daemon.logs.sinks import RotatingFile, StandardError

Start = Callable[..., LogPipeline]


class MovedClock:
    def now_ms(self) -> int:
        return 1_795_228_832_123

    def monotonic(self) -> float:
        return 0.0

    def slept_s(self) -> float:
        return 0.0


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[LogPipeline] = []

    def starter(folder: Path | None, stderr: Any = None, **settings: Any) -> LogPipeline:
        started.append(configure(Logs(**settings), folder, stderr, MovedClock()))
        return started[-1]

    yield starter
    for pipeline in started:
        pipeline.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "logs" / "clawbus.log").read_text(encoding="utf-8").splitlines()]


def test_a_line_begins_with_time_level_and_event(start: Start, tmp_path: Path) -> None:
    out = io.StringIO()
    start(tmp_path, out)
    structlog.get_logger().info("container_spawned", agent="a", took_ms=12)
    expected = {
        "timestamp": "2026-11-21T02:40:32.123Z",
        "level": "info",
        "event": "container_spawned",
        "agent": "a",
        "took_ms": 12,
    }
    assert lines(tmp_path) == [expected]
    assert list(lines(tmp_path)[0]) == list(expected)
    assert json.loads(out.getvalue()) == expected


def test_the_file_is_for_its_owner_alone(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    structlog.get_logger().info("x")
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "logs" / "clawbus.log").stat().st_mode & 0o777 == 0o600


def test_bound_fields_are_on_every_line_inside_and_gone_after(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    log = structlog.get_logger()
    with bound(agent="a", session="s"), bound(incarnation="i", message=None):
        log.info("inside")
    log.info("after")
    inside, after = lines(tmp_path)
    assert (inside["agent"], inside["session"], inside["incarnation"]) == ("a", "s", "i")
    assert "message" not in inside
    assert not {"agent", "session", "incarnation"} & set(after)


@pytest.mark.anyio
async def test_tasks_do_not_see_each_others_fields(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    log = structlog.get_logger()
    barrier = anyio.Event()

    async def work(name: str) -> None:
        with bound(session=name):
            if name == "second":
                barrier.set()
            await barrier.wait()
            await anyio.to_thread.run_sync(lambda: log.info("worked", name=name))

    async with anyio.create_task_group() as group:
        group.start_soon(work, "first")
        group.start_soon(work, "second")
    assert {(line["session"], line["name"]) for line in lines(tmp_path)} == {("first", "first"), ("second", "second")}


def test_the_level_holds_and_a_reload_changes_it_for_loggers_already_bound(start: Start, tmp_path: Path) -> None:
    pipeline = start(tmp_path, level="warning")
    log = structlog.get_logger().bind(loop="sweep")
    log.info("hidden")
    log.warning("shown")
    pipeline.set_level("debug")
    log.debug("shown_too")
    assert [line["event"] for line in lines(tmp_path)] == ["shown", "shown_too"]


def test_our_errors_are_told_with_code_and_hint_and_no_traceback(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    log = structlog.get_logger()

    def spawn() -> None:
        raise ImageError("no image clawbus-runner:latest.")

    try:
        spawn()
    except ImageError:
        log.exception("spawn_failed")
    log.warning("spawn_failed", error=ImageError("again.", hint="Do this."))
    raised, given = lines(tmp_path)
    assert raised["error"] == "no image clawbus-runner:latest."
    assert (raised["code"], raised["hint"]) == ("IMAGE_UNUSABLE", ImageError.default_hint)
    assert "traceback" not in raised
    assert (given["error"], given["code"], given["hint"]) == ("again.", "IMAGE_UNUSABLE", "Do this.")


def test_an_error_alone_in_a_task_groups_group_is_told_as_itself(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    nested = ExceptionGroup("group", [ExceptionGroup("inner", [ImageError("none.")])])
    structlog.get_logger().error("loop_failed", error=nested)
    assert lines(tmp_path)[0]["code"] == "IMAGE_UNUSABLE"


def test_any_other_error_has_its_traceback_on_the_same_line(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    try:
        {}["missing"]
    except KeyError:
        structlog.get_logger().exception("loop_failed")
    (line,) = lines(tmp_path)
    assert (line["level"], line["error_type"]) == ("error", "KeyError")
    assert Path(__file__).name in line["traceback"]
    assert line["traceback"].endswith("KeyError: 'missing'\n")


def test_libraries_speak_from_warning_on(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("docker.api").warning("%d retries", 3)
    logging.getLogger("httpx").error("wrong %d", "format")
    warned, broken = lines(tmp_path)
    assert (warned["event"], warned["logger"], warned["text"], warned["level"]) == (
        "library_log",
        "docker.api",
        "3 retries",
        "warning",
    )
    assert (broken["text"], broken["level"]) == ("wrong %d", "error")


def test_close_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = (logging.getLogger().level, list(logging.getLogger().handlers), warnings.showwarning)
    pipeline = configure(Logs(), tmp_path, None)
    assert logging.getLogger().handlers != before[1]
    pipeline.close()
    pipeline.close()
    assert (logging.getLogger().level, list(logging.getLogger().handlers), warnings.showwarning) == before
    assert not structlog.is_configured()


# --- values ----------------------------------------------------------------------------------------------------------


@dataclass
class Spec:
    image: str
    environment: dict[str, str]


class Loud:
    def __repr__(self) -> str:
        raise AssertionError("nobody may call this")

    __str__ = __repr__


def by_key(value: object) -> str | None:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("n", 3, 3),
        ("n", 1 << 99_999, "<an integer of 100000 bits>"),
        ("ratio", float("nan"), "nan"),
        ("path", Path("/x/y"), "/x/y"),
        ("content", b"abc", "<3 bytes>"),
        ("odd", Loud(), "<Loud>"),
        ("names", ("a", Path("b")), ["a", "b"]),
        ("by", {1: {"deep": True}}, {"1": {"deep": True}}),
        ("environment", {"B": "hush", "A": "hush"}, ["A", "B"]),
        ("env", {"B": "hush"}, ["B"]),
        ("api_key", "hush", REDACTED),
        ("webhook_secret", "hush", REDACTED),
        ("headers", {"Authorization": "hush", "Accept": "*/*"}, {"Authorization": REDACTED, "Accept": "*/*"}),
        ("spec", Spec("i", {"KEY": "hush"}), {"image": "i", "environment": ["KEY"]}),
        ("token_count", 5, 5),
    ],
    ids=by_key,
)
def test_a_value_is_made_plain(key: str, value: object, shown: object) -> None:
    assert plain(value, key) == shown


def test_a_value_has_a_limit() -> None:
    text = plain("x" * (MAX_TEXT + 7))
    assert isinstance(text, str)
    assert text.endswith("(7 characters more)")
    items = plain(range(100_000))
    assert isinstance(items, list)
    assert len(items) == 100
    loop: list[object] = []
    loop.append(loop)
    assert "list" in json.dumps(plain(loop))


def test_a_line_of_json_is_one_line_whatever_is_in_it() -> None:
    hostile = "a\nb\x1b[2J\x9b1m\u2028\x7f\udcff"
    line = json_line({"event": hostile})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert not any(byte in line for byte in (b"\x1b", b"\x7f", b"\xc2\x9b", b"\xe2\x80\xa8"))
    assert json.loads(line)["event"] == hostile


def test_pretty_shows_no_control_characters_and_the_traceback_after() -> None:
    render = pretty_renderer(colors=False)
    event = {
        "timestamp": "2026-11-21T02:20:32.123Z",
        "level": "error",
        "event": "x\x1b[2J",
        "traceback": "Trace\n  it\n",
    }
    text = render(event).decode()
    assert "\x1b" not in text
    assert text.startswith("02:20:32.123Z")
    assert text.endswith("\n    | Trace\n    |   it\n")


def test_a_value_that_cannot_be_shown_costs_its_line_only(start: Start, tmp_path: Path) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    start(tmp_path)
    structlog.get_logger().info("odd", error=Broken())
    structlog.get_logger().info("fine")
    odd, fine = lines(tmp_path)
    assert (odd["event"], odd["of"]) == ("log_event_unprintable", "odd")
    assert fine["event"] == "fine"


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_rotates_by_size_and_old_ones_go(tmp_path: Path) -> None:
    sink = RotatingFile(tmp_path / "c.log", max_bytes=100, count=3)
    for number in range(40):
        sink.write(b"%02d%s\n" % (number, b"." * 17), lambda *_: b"")
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.log", "c.log.1", "c.log.2"]
    assert all(path.stat().st_size == 100 for path in tmp_path.iterdir())
    assert (tmp_path / "c.log").read_bytes().endswith(b"39.................\n")
    assert (tmp_path / "c.log.2").read_bytes().startswith(b"25")


def test_one_file_is_enough(tmp_path: Path) -> None:
    sink = RotatingFile(tmp_path / "c.log", max_bytes=30, count=1)
    for _ in range(5):
        sink.write(b"x" * 19 + b"\n", lambda *_: b"")
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["c.log"]


def test_the_folder_above_is_never_made(tmp_path: Path) -> None:
    """A data folder that was moved away would find another one in its place when it comes back."""
    sink = RotatingFile(tmp_path / "data" / "logs" / "c.log", max_bytes=100, count=2)
    sink.write(b"lost\n", lambda *_: b"")
    assert sink.failing
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "data").mkdir()
    sink.write(b"kept\n", lambda _, count, __: b"%d lost\n" % count)
    sink.close()
    assert (tmp_path / "data" / "logs" / "c.log").read_bytes() == b"1 lost\nkept\n"


def test_a_file_moved_away_by_others_is_made_anew(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    log = structlog.get_logger()
    log.info("before")
    (tmp_path / "logs" / "clawbus.log").rename(tmp_path / "logs" / "moved")
    log.info("after")
    assert [line["event"] for line in lines(tmp_path)] == ["after"]


def test_a_full_disk_drops_and_counts_and_says_so_once_when_it_recovers(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    pipeline = start(tmp_path, out)
    log = structlog.get_logger()
    log.info("one")
    real_write = os.write
    room = 10  # a disk with its last bytes free tears a line

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        written = real_write(descriptor, data[:room])
        room -= written
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        log.info("two")
        log.info("three")
        room = 10_000
        log.info("four")
    assert pipeline.dropped == 2
    events = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert events == ["one", "two", "log_sink_failing", "three", "four"]
    text = (tmp_path / "logs" / "clawbus.log").read_text(encoding="utf-8").splitlines()
    assert len(text) == 4
    whole = [json.loads(line) for line in text if line.endswith("}")]
    assert [line["event"] for line in whole] == ["one", "log_sink_recovered", "four"]
    assert (whole[1]["dropped"], whole[1]["sink"]) == (2, "file")
    assert "No space left" in whole[1]["reason"]


def test_a_log_folder_that_cannot_be_made_stops_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file is in the way")
    out = io.StringIO()
    start(tmp_path, out)
    structlog.get_logger().info("one")
    structlog.get_logger().info("two")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["one", "log_sink_failing", "two"]
    (tmp_path / "logs").unlink()
    structlog.get_logger().info("three")
    assert [line["event"] for line in lines(tmp_path)] == ["log_sink_recovered", "three"]


# --- standard error --------------------------------------------------------------------------------------------------


def test_a_broken_pipe_stops_nothing_and_the_file_has_it_all(start: Start, tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stderr:
        os.close(read)
        start(tmp_path, stderr)
        structlog.get_logger().info("one")
        structlog.get_logger().info("two")
        assert [line["event"] for line in lines(tmp_path)] == ["one", "log_sink_failing", "two"]


def test_a_closed_stderr_stops_nothing(start: Start, tmp_path: Path) -> None:
    stderr = io.StringIO()
    start(tmp_path, stderr)
    stderr.close()
    structlog.get_logger().info("one")
    assert lines(tmp_path)[0]["event"] == "one"


def test_a_reader_that_does_not_read_costs_lines_and_not_the_daemon() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "w") as stderr:
        sink = StandardError(stderr)
        for _ in range(200):
            sink.write(b"x" * 999 + b"\n", lambda *_: b"")
        assert 0 < sink.dropped < 200
        os.set_blocking(reader.fileno(), False)
        while reader.read(65536):
            pass
        sink.write(b"again\n", lambda name, count, reason: f"{name} {count} {reason}\n".encode())
        assert reader.read(65536) == f"stderr {sink.dropped} nobody reads it\nagain\n".encode()
        assert not sink.failing


def test_a_line_longer_than_a_pipes_promise_arrives_whole_while_somebody_reads() -> None:
    read, write = os.pipe()
    line = b"y" * 300_000 + b"\n"
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read, "rb") as reader:
            got.append(reader.read())

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(write, "w") as stderr:
        StandardError(stderr).write(line, lambda *_: b"")
    reader.join(10)
    assert got == [line]


def in_journal(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str = "auto") -> list[str]:
    """Return what two events are in the journal."""
    path = tmp_path / "err"
    with path.open("w") as stderr:
        status = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        start(None, stderr, format=form)
        structlog.get_logger().warning("disk_low", free=12, why="a full disk")
        structlog.get_logger().error("bad")
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("form", ["auto", "pretty"])
def test_the_journal_gets_words_with_their_priority(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The journal has the time and the level itself."""
    assert in_journal(start, tmp_path, monkeypatch, form) == ['<4>disk_low free=12 why="a full disk"', "<3>bad"]


def test_the_journal_gets_json_where_that_is_configured(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = in_journal(start, tmp_path, monkeypatch, "json")
    assert first.startswith('<4>{"timestamp": ')
    assert second.startswith("<3>{")


def test_a_terminal_gets_text_and_a_pipe_gets_json(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    main, side = os.openpty()
    with os.fdopen(main, "rb", buffering=0) as terminal, os.fdopen(side, "w") as stderr:
        start(None, stderr)
        structlog.get_logger().info("container_spawned", agent="a")
        with suppress(OSError):
            text = terminal.read(4096).decode()
            assert "container_spawned" in text
            assert "agent=a" in text
            assert "{" not in text
            return
    pytest.fail("the terminal got nothing")


def test_a_process_started_without_stderr_logs_to_its_file(start: Start, tmp_path: Path) -> None:
    pipeline = start(tmp_path, None)
    structlog.get_logger().info("one")
    assert lines(tmp_path)[0]["event"] == "one"
    assert pipeline.dropped == 0
    assert sys.stderr is not None


def test_a_librarys_repeated_words_are_counted_and_not_repeated(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    logger = logging.getLogger("asyncio")
    for number in range(2000):
        logger.error("socket.accept() out of system resource\nsocket: <object %s>", number)
        logger.error("Exception in callback X()\nhandle: <%s>", number)
    logger.error("another thing")
    events = [(one["event"], one.get("text", "").partition("\n")[0]) for one in lines(tmp_path)]
    assert events == [
        ("accept_failing", ""),
        ("library_log", "Exception in callback X()"),
        ("library_log", "another thing"),
    ]


def test_after_a_while_the_words_come_again_with_their_number() -> None:
    times = [1.0, 2.0, 3.0, 11.5, 12.0]
    bridge = _Bridge(logging.WARNING, iter(times).__next__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "again", None, None)
    with capture_logs() as logs:
        for _ in times:
            bridge.emit(record)
    assert [one.get("repeated") for one in logs] == [None, 2]
