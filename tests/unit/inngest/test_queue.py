"""Where a server keeps its queue, and what that means for a sweep: lost with a restart, or alive in Redis."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.inngest.errors import SweepQueueAliveError
from daemon.inngest.holders import Queue, find_holders
from daemon.inngest.operations import operate
from daemon.inngest.plan import Scope
from daemon.inngest.redis_queue import runs_in_redis
from daemon.inngest.reports import sweep_report
from daemon.inngest.sweep import Request, sweep
from tests.support.inngest_db import HEALTH, HOUR, MINUTE, NOW, TRIAGE, InngestDb, the_night

SCOPE = Scope(functions=(TRIAGE, HEALTH))
_HOLD = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


@contextmanager
def server(path: Path, *words: str, folder: Path, environment: Mapping[str, str] | None = None) -> Generator[int]:
    """A process that is called `inngest` and has the file open; its pid."""
    with subprocess.Popen(
        ["inngest", "-c", _HOLD, str(path), "start", *words], executable=sys.executable, cwd=folder,
        env={"PATH": os.defpath, **(environment or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield process.pid
        finally:
            process.communicate(b"")


@pytest.fixture
def db(tmp_path: Path) -> InngestDb:
    """A run that sleeps for a month, one that is queued, one that is silent."""
    made = InngestDb(tmp_path / "main.db")
    sleeps = made.run(TRIAGE)
    made.history(
        sleeps, "StepSleeping", sleeps.started_at + 10, step_id="s", sleep=json.dumps({"until": "2026-04-05T10:00:00Z"})
    )
    made.run(HEALTH, status=100, span="Queued")
    made.run(HEALTH)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "server"
    made.mkdir()
    return made


def found(db: InngestDb, **more: object) -> tuple[int, dict[str, int]]:
    report = sweep_report(sweep(Request(db.path, SCOPE, "ada"), NOW))
    return len(report["candidates"]), report["left_alone"]


def test_a_server_that_started_after_everything_and_has_no_redis_proves_that_the_queue_is_lost(
    db: InngestDb, folder: Path
) -> None:
    assert found(db) == (1, {"waiting": 1})
    with server(db.path, folder=folder) as pid:
        (holder,) = find_holders(db.path)
        assert (holder.pid, holder.queue) == (pid, Queue.MEMORY)
        assert found(db) == (3, {})
        asked = {"functions": (), "older_than_ms": 30 * MINUTE, "max_runs": 9, "sample": 9, "exclude": ()}
        answer = operate(
            "runs", {"path": str(db.path), "scope": asked, "status": "stale", "limit": 9}, print, lambda: NOW
        )
        assert answer["result"]["stale"] == 3
    assert found(db) == (1, {"waiting": 1}), "a server that is down proves nothing"


def test_what_a_server_was_heard_of_since_its_start_is_in_its_queue(tmp_path: Path, folder: Path) -> None:
    later = NOW + 400 * 24 * HOUR * 10  # after this machine's own time
    db = InngestDb(tmp_path / "main.db", now=later)
    sleeps = db.run(TRIAGE)
    db.history(sleeps, "StepSleeping", sleeps.started_at + 10, step_id="s", sleep=json.dumps({"until": later + HOUR}))
    db.run(HEALTH, age=MINUTE)
    with server(db.path, folder=folder):
        report = sweep_report(sweep(Request(db.path, SCOPE, "ada"), later))
    assert report["left_alone"] == {"waiting": 1, "young": 1}


@pytest.mark.parametrize(
    ("words", "environment", "queue"),
    [
        ((), {"INNGEST_REDIS_URI": "redis://x"}, Queue.REDIS),
        (("--redis-uri", "redis://u:hidden@x:6379"), {}, Queue.REDIS),
        (("--redis-uri=redis://u:hidden@x:6379",), {}, Queue.REDIS),
        (("--config", "x.yaml"), {}, Queue.UNKNOWN),
    ],
)
def test_a_server_with_redis_or_with_settings_that_are_not_seen_proves_nothing(
    db: InngestDb, folder: Path, words: tuple[str, ...], environment: dict[str, str], queue: Queue
) -> None:
    with server(db.path, *words, folder=folder, environment=environment):
        (holder,) = find_holders(db.path)
        assert holder.queue is queue
        assert "hidden" not in holder.command
        assert found(db) == (1, {"waiting": 1})
        error = sweep(Request(db.path, SCOPE, "ada", apply=True), NOW).error
        assert error is not None
        assert error.code == ("SWEEP_QUEUE_ALIVE" if queue is Queue.REDIS else "SWEEP_SERVER_RUNNING")


def test_a_settings_file_or_an_old_server_s_snapshot_leaves_it_open_too(db: InngestDb, folder: Path) -> None:
    (folder / "inngest.yaml").touch()
    with server(db.path, folder=folder):
        assert find_holders(db.path)[0].queue is Queue.UNKNOWN
    (folder / "inngest.yaml").unlink()
    db.do("INSERT INTO queue_snapshot_chunks VALUES ('01A', 0, x'00')")
    with server(db.path, folder=folder):
        assert find_holders(db.path)[0].queue is Queue.MEMORY
        assert found(db) == (1, {"waiting": 1})


class Redis:
    """Enough of a server to be asked: keys, one hash, a password."""

    def __init__(self, names: list[bytes], items: dict[bytes, bytes], password: bytes | None = None) -> None:
        self.names = names
        self.items = items
        self.password = password
        self.asked: list[list[bytes]] = []

    def answer(self, words: list[bytes]) -> bytes:
        self.asked.append(words)
        name = words[0].upper()
        if name == b"AUTH":
            return b"+OK\r\n" if words[-1] == self.password else b"-WRONGPASS invalid password\r\n"
        if self.password is not None and not any(one[0] == b"AUTH" for one in self.asked):
            return b"-NOAUTH Authentication required.\r\n"
        if name == b"SELECT":
            return b"+OK\r\n"
        if name == b"SCAN":
            half = len(self.names) // 2
            first = words[1] == b"0"
            return self._page(b"7" if first else b"0", self.names[:half] if first else self.names[half:])
        return self._page(b"0", [text for pair in self.items.items() for text in pair])

    def _page(self, cursor: bytes, texts: list[bytes]) -> bytes:
        listed = b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in texts)
        return b"*2\r\n$%d\r\n%s\r\n*%d\r\n%s" % (len(cursor), cursor, len(texts), listed)


@contextmanager
def serving(redis: Redis, garbage: bytes | None = None) -> Generator[str]:
    """Its address."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline():
                words: list[bytes] = []
                for _ in range(int(line[1:])):
                    size = int(stream.readline()[1:])
                    words.append(stream.read(size + 2)[:-2])
                stream.write(garbage if garbage is not None else redis.answer(words))
                stream.flush()
                if garbage is not None:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(20)
            assert not thread.is_alive()


def test_a_run_that_redis_names_in_a_key_or_in_the_queue_is_alive(tmp_path: Path) -> None:
    night = the_night(tmp_path / "main.db")
    keys = [one.key for one in night.stale]
    redis = Redis(
        [b"other", b"{estate:" + keys[0].encode() + b"}:metadata", b"{queue}:queue:item", b"x" * 26],
        {b"7f3a": json.dumps({"data": {"identifier": {"runID": keys[1]}}}).encode(), b"9": b"\xff"},
        b"p@ss",
    )
    with serving(redis) as where:
        assert runs_in_redis(f"redis://:p%40ss@{where}/3", keys) == {keys[0], keys[1]}
    assert [b"SELECT", b"3"] in redis.asked
    assert {one[0] for one in redis.asked} == {b"AUTH", b"SELECT", b"SCAN", b"HSCAN"}, "nothing that changes anything"


def test_a_sweep_is_refused_for_what_redis_holds_and_goes_on_without_it(tmp_path: Path) -> None:
    night = the_night(tmp_path / "main.db")
    alive = night.stale[0].key
    scope = Scope(functions=(TRIAGE, HEALTH), exclude=(night.unregistered.key,))
    with serving(Redis([b"{s}:" + alive.encode()], {})) as where:
        outcome = sweep(Request(night.db.path, scope, "ada", apply=True, redis_uri=f"redis://{where}"), NOW)
    assert outcome.error is not None
    assert outcome.error.code == "SWEEP_QUEUE_ALIVE"
    assert f"--exclude {alive}" in outcome.error.hint
    without = Scope(functions=(TRIAGE, HEALTH), exclude=(night.unregistered.key, alive))
    with serving(Redis([b"{s}:" + alive.encode()], {})) as where:
        outcome = sweep(Request(night.db.path, without, "ada", apply=True, redis_uri=f"redis://{where}"), NOW)
    assert outcome.error is None
    assert outcome.written is not None


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"HTTP/1.1 400\r\n",
        b"*2\r\n$1\r\n",
        b"$99999999999\r\n",
        b"-ERR no\r\n",
        b":1\r\n",
        b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
    ],
)
def test_a_redis_that_does_not_answer_leaves_everything_as_it_is(garbage: bytes) -> None:
    with serving(Redis([], {}), garbage) as where, pytest.raises(SweepQueueAliveError) as caught:
        runs_in_redis(f"redis://:secret@{where}", ["01KJWYBYTR08VKJ33G01TBMGDR"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["", "http://x", "redis://", "redis://x:port", "redis://127.0.0.1:1"])
def test_an_address_that_is_none_is_told(uri: str) -> None:
    with pytest.raises(SweepQueueAliveError):
        runs_in_redis(uri, ["01KJWYBYTR08VKJ33G01TBMGDR"])
    assert runs_in_redis(uri, []) == frozenset()


def test_the_operator_s_word_that_the_queue_is_lost_comes_before_redis(db: InngestDb) -> None:
    scope = Scope(functions=(TRIAGE, HEALTH), lost_before_ms=NOW)
    outcome = sweep(Request(db.path, scope, "ada", apply=True, redis_uri="redis://127.0.0.1:1"), NOW)
    assert outcome.error is None
    assert len(outcome.plan.candidates) == 3
    assert shutil.which("inngest") is None or outcome.written is not None
