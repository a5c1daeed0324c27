"""A session's files are there whole or not at all: whatever ends their making, the next attempt completes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.core.session_key import SessionKey
from daemon.store.rebuild import agree_on_install_id, found_sessions
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from schema.connect import open_owner, open_reader
from schema.errors import UnusableFileError
from schema.migrate import Role
from schema.plain_file import ReadLimits

STEPS = ("mkdir", "chmod", "open", "fchmod", "replace", "fsync", "unlink")


class Killed(BaseException):
    """The process ends here."""


class Steps:
    """Counts the steps that change something, and ends before or after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, die_at: int = 0, *, after: bool = False) -> None:
        self.taken = 0
        self._die_at = die_at
        self._after = after
        for name in STEPS:
            monkeypatch.setattr(os, name, self._stepped(getattr(os, name)))

    def _stepped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            self.taken += 1
            if self.taken == self._die_at and not self._after:
                raise Killed
            mine = self.taken
            try:
                return real(*args, **more)
            finally:
                if mine == self._die_at and self._after:
                    raise Killed

        return step


def files(root: Path) -> SessionFiles:
    return SessionFiles(root / "sessions" / "a" / "s", ReadLimits())


def count_steps(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        files(tmp_path / "counted").create()
        return steps.taken


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_session_whose_making_ends_at_any_step_is_absent_or_whole_and_the_next_attempt_completes_it(
    tmp_path: Path, after: bool
) -> None:
    total = count_steps(tmp_path)
    assert total > 8
    for step in range(1, total + 1):
        root = tmp_path / f"{after}-{step}"
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, step, after=after)
            with pytest.raises(Killed):
                files(root).create()
        # What a start would register is a session that can be worked with.
        (root / "sessions").mkdir(parents=True, exist_ok=True)
        for _ in found_sessions(root / "sessions"):
            with files(root).inbound() as db:
                assert db.all("SELECT * FROM messages_in") == []
        files(root).create()
        with files(root).inbound() as db:
            assert db.all("SELECT * FROM messages_in") == []
        assert sorted(path.name for path in (files(root).folder.inbox).iterdir()) == ["inbound.db"]
        assert list(found_sessions(root / "sessions")) == [SessionKey("a", "s")]


@pytest.mark.parametrize("journal", [False, True])
def test_an_empty_file_that_an_older_version_left_is_completed(tmp_path: Path, journal: bool) -> None:
    one = files(tmp_path)
    one.folder.inbox.mkdir(parents=True)
    one.folder.inbound_db.touch()
    if journal:
        one.folder.inbound_db.with_name("inbound.db-journal").write_bytes(
            b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0" * 504
        )
    assert list(found_sessions(tmp_path / "sessions")) == []
    one.create()
    with one.inbound() as db:
        assert db.all("SELECT * FROM messages_in") == []


def test_a_file_that_was_emptied_beside_a_containers_answers_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    one = files(tmp_path)
    one.create()
    open_owner(one.folder.outbound_db, Role.OUTBOUND).close()
    one.folder.inbound_db.write_bytes(b"")
    with pytest.raises(UnusableFileError, match="truncated"):
        one.create()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_rights_of_what_is_made_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        one = files(tmp_path)
        one.create()
        open_owner(one.folder.outbound_db, Role.OUTBOUND).close()
        registry = Registry(tmp_path / "central.db")
        agree_on_install_id(registry, tmp_path / "install-id", 1)
        open_owner(tmp_path / "mailbox.db", Role.MAILBOX).close()
    finally:
        os.umask(before)
    rights = {
        path: oct((tmp_path / path).stat().st_mode & 0o777)
        for path in (
            "central.db",
            "mailbox.db",
            "install-id",
            "sessions/a",
            "sessions/a/s",
            "sessions/a/s/in",
            "sessions/a/s/in/inbound.db",
            "sessions/a/s/logs",
            "sessions/a/s/out",
            "sessions/a/s/out/outbound.db",
        )
    }
    assert rights == {
        "central.db": "0o600",
        "mailbox.db": "0o600",
        "install-id": "0o600",
        "sessions/a": "0o700",
        "sessions/a/s": "0o700",
        "sessions/a/s/in": "0o755",
        "sessions/a/s/in/inbound.db": "0o644",
        "sessions/a/s/logs": "0o700",
        "sessions/a/s/out": "0o755",
        "sessions/a/s/out/outbound.db": "0o644",
    }
    with open_reader(one.folder.inbound_db) as db:
        assert db.all("SELECT * FROM messages_in") == []
