"""The host's copies of an answer's files: there before the answer is noted, the same after a crash at any step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.config.models import Delivery
from daemon.core.attachments import IntakeLimits
from daemon.core.delivery_plan import ChannelRules
from daemon.core.sent_files import SentFiles
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import Collected, collect
from daemon.engine.hand_over import Outcome
from daemon.engine.outcome_steps import record_outcomes
from daemon.store import sent_files
from daemon.store.pruning import prune_receipts
from daemon.store.session_files import SessionFiles
from schema.errors import StorageError
from schema.plain_file import ReadLimits
from tests.support.session_world import SessionWorld

INTAKE = IntakeLimits(max_content_bytes=10_000, max_attachments=3, max_attachment_bytes=20, max_sent_bytes=1000)
MEANS = DeliveryContext(
    {"local": ChannelRules(deduplicates=True, hold_in_doubt=False)}, Delivery(), 10_000,
    held=frozenset(), under_way=frozenset(), jitter=0.5, intake=INTAKE,
)  # fmt: skip
DAY = 86_400_000


@pytest.fixture
def world(tmp_path: Path) -> SessionWorld:
    made = SessionWorld(tmp_path / "s")
    made.accept("m1")
    return made


def outbox(world: SessionWorld, row_id: str) -> Path:
    folder = world.files.folder.outbox / "outbox" / row_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(world: SessionWorld, row_id: str, files: dict[str, bytes], names: list[Any] | None = None) -> None:
    for name, data in files.items():
        (outbox(world, row_id) / name).write_bytes(data)
    world.say(row_id, content=json.dumps({"text": "see", "files": list(files) if names is None else names}))


def look(world: SessionWorld, intake: IntakeLimits = INTAKE) -> Collected:
    return collect(world.files, replace(MEANS, unconfirmed=set(), intake=intake), None, world)


def sent(found: Collected) -> SentFiles:
    (send,) = found.sends
    return send.candidate.files


def copies(world: SessionWorld) -> dict[str, bytes]:
    root = world.root / "sent"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != sent_files.MANIFEST
    }


def test_the_copy_is_what_is_sent_whatever_the_container_does_next(world: SessionWorld) -> None:
    say(world, "o1", {"a.txt": b"first", "b.png": b"no png"})
    found = sent(look(world))
    assert [(one.name, one.media_type, one.size, Path(one.path).read_bytes()) for one in found.files] == [
        ("a.txt", "text/plain", 5, b"first"),
        ("b.png", "application/octet-stream", 6, b"no png"),
    ]
    (outbox(world, "o1") / "a.txt").write_bytes(b"changed")
    (outbox(world, "o1") / "b.png").unlink()
    assert world.files.sent.keep("o1", '{"files": ["a.txt"]}', INTAKE) == found, "an attempt after a restart"
    assert not (world.root / "sent").stat().st_mode & 0o077


def _link_out(world: SessionWorld) -> None:
    (outbox(world, "o1") / "bad").symlink_to(world.files.folder.inbound_db)


def _link_folder(world: SessionWorld) -> None:
    outbox(world, "o1").rmdir()
    outbox(world, "real").joinpath("bad").write_bytes(b"x")
    outbox(world, "o1").rmdir()
    (world.files.folder.outbox / "outbox" / "o1").symlink_to("real")


def _fifo(world: SessionWorld) -> None:
    os.mkfifo(outbox(world, "o1") / "bad")


def _large(world: SessionWorld) -> None:
    (outbox(world, "o1") / "bad").write_bytes(b"x" * 21)


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (_link_out, "bad", "is a link"),
        (_link_folder, "bad", "is behind a link"),
        (_fifo, "bad", "is a fifo"),
        (_large, "bad", "has 21 bytes"),
        (lambda _: None, "bad", "is not there"),
        (lambda _: None, "../o2/bad", "begins with . or -"),
        (lambda _: None, "a/bad", "holds a path"),
        (lambda _: None, "a\u202ebad", "cannot be seen"),
        (lambda _: None, ".manifest.json", "begins with . or -"),
    ],
)  # fmt: skip
def test_what_a_container_forges_is_refused_and_its_text_is_sent(
    world: SessionWorld, make: Callable[[SessionWorld], object], name: str, reason: str
) -> None:
    make(world)
    world.say("o1", content=json.dumps({"text": "see", "files": [name]}))
    found = sent(look(world))
    assert found.files == ()
    [(refused, why)] = found.refused
    assert refused == name
    assert reason in why


@pytest.mark.parametrize("names", ["a.txt", [1], [None, "a.txt"], {"a.txt": 1}, [], [["a.txt"]]])
def test_other_content_under_that_key_is_content(world: SessionWorld, names: Any) -> None:
    say(world, "o1", {}, names)
    assert sent(look(world)) == SentFiles()
    assert not (world.root / "sent").exists()


def test_an_id_that_names_no_folder_has_no_files(world: SessionWorld) -> None:
    world.say("../../x", content='{"text": "see", "files": ["a"]}')
    found = sent(look(world))
    assert (found.files, [why for _, why in found.refused]) == ((), ["belongs to an answer without a valid id"])


def test_number_and_total_are_limited_and_each_message_says_so(world: SessionWorld) -> None:
    say(world, "o1", dict.fromkeys("abcd", b"1"))
    found = sent(look(world))
    assert [one.name for one in found.files] == ["a", "b", "c"]
    assert "max_attachments is 3" in found.refused[0][1]
    full = replace(INTAKE, max_sent_bytes=300)
    world.files.sent = sent_files.SentStore(world.files.folder)  # a restart counts again
    say(world, "o2", {"e": b"1" * 20})
    look(world, full)
    say(world, "o3", {"f": b"1" * 20})
    reasons = [why for one in look(world, full).sends for _, why in one.candidate.files.refused]
    assert any("limits.max_sent_bytes" in why for why in reasons), reasons


def test_the_oldest_copies_that_arrived_make_room_for_new_ones(world: SessionWorld) -> None:
    roomy, limited = replace(INTAKE, max_sent_bytes=100_000), replace(INTAKE, max_sent_bytes=1200)
    for number in range(6):
        say(world, f"o{number}", {"a": b"1" * 10})
        sends = look(world, roomy).sends
        os.utime(world.root / "sent" / f"o{number}", (number, number))
        if number != 2:  # the receiver has not taken this one
            record_outcomes(world.files, [Outcome(one, sent=True) for one in sends], MEANS, world.now)
    world.files.sent = sent_files.SentStore(world.files.folder)
    say(world, "o6", {"b": b"2" * 10})
    new = [one for one in look(world, limited).sends if one.candidate.row.id == "o6"]
    assert [(one.candidate.files.refused, len(one.candidate.files.files)) for one in new] == [((), 1)]
    left = {path.name for path in (world.root / "sent").iterdir()}
    assert {"o2", "o5", "o6"} <= left
    assert "o0" not in left


def test_a_poll_copies_for_a_few_answers_and_says_that_there_are_more(world: SessionWorld) -> None:
    for number in range(6):
        say(world, f"o{number}", {"a": b"1"})
    first = look(world)
    assert ([one.candidate.row.id for one in first.sends], first.more) == (["o0", "o1", "o2", "o3"], True)
    assert [one.candidate.row.id for one in look(world).sends if one.candidate.row.id in ("o4", "o5")] == ["o4", "o5"]


def test_a_full_disk_delays_the_answer_and_costs_it_nothing(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(world, "o1", {"a.txt": b"first"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sent_files, "write_new_file", full)
        with pytest.raises(StorageError):
            look(world)
    assert world.read("SELECT * FROM delivery_attempts") == []
    assert [one.name for one in sent(look(world)).files] == ["a.txt"]


class Killed(BaseException):
    """The process died here: no handler of ours runs."""


def test_a_crash_at_any_step_loses_no_file_and_sends_none_twice(
    world: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths, roomy = 0, replace(INTAKE, max_sent_bytes=100_000)
    while True:
        row_id, left = f"o{deaths}", deaths
        say(world, row_id, {"a.txt": b"first", "b.txt": b"second"})

        def before(step: Callable[..., Any]) -> Callable[..., Any]:
            def stepped(*given: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return step(*given, **named)

            return stepped

        with monkeypatch.context() as patched:
            for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "rename")):
                patched.setattr(owner, name, before(getattr(owner, name)))
            patched.setattr("daemon.engine.delivery_steps._write", before(lambda *_: []))
            try:
                look(world, roomy)
            except Killed:
                pass
            else:
                break
        assert not world.read("SELECT * FROM delivery_attempts WHERE message_out_id = ?", (row_id,))
        world.files = SessionFiles(world.root, ReadLimits())  # the next daemon
        found = sent(look(world, roomy))
        assert {one.name: Path(one.path).read_bytes() for one in found.files} == {"a.txt": b"first", "b.txt": b"second"}
        record_outcomes(world.files, [Outcome(one, sent=True) for one in look(world, roomy).sends], MEANS, world.now)
        world.change("DELETE FROM delivery_attempts")
        assert not (world.root / "sent" / ".partial").exists()
        deaths += 1
    assert deaths >= 8, "two folders, two files, the manifest, the folder, the rename, its folders, the row"


def test_the_copies_go_with_the_receipt_and_those_of_no_answer_too(world: SessionWorld) -> None:
    say(world, "o1", {"a.txt": b"first"})
    say(world, "o2", {"b.txt": b"second"})
    found = look(world)
    record_outcomes(world.files, [Outcome(one, sent=True) for one in found.sends], MEANS, world.now)
    (world.root / "sent" / "lost").mkdir()
    (world.root / "sent" / "lost" / "c.txt").write_bytes(b"third")
    (world.root / "sent" / "notes").write_text("an operator's")
    for stray in ("lost", "notes"):
        os.utime(world.root / "sent" / stray, (0, 0))
    world.files.sent = sent_files.SentStore(world.files.folder)
    say(world, "o3", {"d.txt": b"fourth"})
    assert [one.name for one in sent(look(world)).files] == ["d.txt"], "a stray file stops nothing"
    world.now += 31 * DAY
    assert prune_receipts(world.files, world.now - 30 * DAY, 0, 100, world.now).taken == 0, "the rows are there"
    assert set(copies(world)) == {"o1/a.txt", "o2/b.txt", "o3/d.txt"}
    with world.runner() as db, db.transaction():
        db.execute("DELETE FROM messages_out WHERE id = 'o1'")
    assert prune_receipts(world.files, world.now - 30 * DAY, 0, 100, world.now).taken == 1
    assert set(copies(world)) == {"o2/b.txt", "o3/d.txt"}
