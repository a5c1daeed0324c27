"""A daemon that lives and does not answer: nobody is told to start a second one, and one that starts is waited for."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.cli import patience
from daemon.store.data_folder import DataFolder
from daemon.store.folder_lock import live_holder
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations, serving


def test_a_folder_that_is_held_is_said_to_be(cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_HAND_OVER_S", 0.0)
    with DataFolder.open(home / "data") as folder:
        holder = live_holder(folder.root)
        assert holder is not None
        sent = cli("send", "x", "-a", "echo", "-s", "s").envelope
        assert sent["error"]["code"] == "DAEMON_DOWN"
        assert f"process {holder.pid} holds" in sent["error"]["message"]
        assert [one["command"] for one in sent["next_actions"]] == ["clawbus logs -n 50"]


def test_a_message_waits_for_a_daemon_that_is_starting(
    cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, up, ended = threading.Event(), threading.Event(), threading.Event()

    def serve() -> None:
        assert refused.wait(30)
        with serving(FakeOperations(), home / "data" / "control.sock"):
            up.set()
            ended.wait(30)

    def waited(_: float) -> None:
        refused.set()
        assert up.wait(30)

    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=waited))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with DataFolder.open(home / "data"):
            assert cli("send", "x", "-a", "echo", "-s", "s").result["accepted"] is True
    finally:
        ended.set()
        thread.join()


def test_a_name_that_a_killed_daemon_left_counts_for_nothing(cli: CommandLine, home: Path) -> None:
    (home / "data" / "clawbus.lock").write_text('{"pid": 1, "since": "2026-01-01T00:00:00.000Z"}')
    assert live_holder(home / "data") is None
    assert cli("send", "x", "-a", "echo", "-s", "s").envelope["next_actions"][0]["command"] == "clawbus serve"
