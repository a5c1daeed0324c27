"""A daemon that lives and does not answer: nobody is told to start a second one, and one that starts is waited for."""

import contextlib
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.cli import daemon_status, patience
from daemon.store.data_folder import DataFolder
from daemon.store.folder_lock import live_holder
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations, serving


def test_a_folder_that_is_held_is_said_to_be(cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PATIENCE_S", 0.0)
    with DataFolder.open(home / "data") as folder:
        holder = live_holder(folder.root)
        assert holder is not None
        sent = cli("send", "x", "-a", "echo", "-s", "s").envelope
        assert sent["error"]["code"] == "DAEMON_DOWN"
        assert f"process {holder.pid} has held" in sent["error"]["message"]
        assert [one["command"] for one in sent["next_actions"]] == ["clawbus logs -n 50"]


def test_who_may_not_open_the_socket_is_not_told_to_start_a_daemon(
    cli: CommandLine, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for command in (("send", "x", "-a", "echo", "-s", "s"), ("reload",)):
        refused = cli(*command).envelope
        assert "no permission" in refused["error"]["message"]
        assert "daemon's user" in refused["fix"]
        assert not [one for one in refused.get("next_actions", ()) if "serve" in one["command"]]


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


def test_doctor_waits_for_a_daemon_that_makes_its_lost_socket_anew(
    cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as daemon:

        def remade(_: float) -> None:
            daemon.enter_context(serving(FakeOperations(), home / "data" / "control.sock"))

        monkeypatch.setattr(daemon_status, "time", SimpleNamespace(sleep=remade))
        with DataFolder.open(home / "data"):
            assert cli("doctor").envelope["result"]["daemon"] == "up"


def test_doctor_says_that_the_socket_is_gone_if_it_stays_so(
    cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_status, "_RECREATE_S", 0.0)
    with DataFolder.open(home / "data"):
        (first, *_) = cli("doctor").envelope["result"]["findings"]
    assert first["code"] == "DAEMON_SILENT"
    assert first["evidence"][0].endswith("The socket is gone, and it makes no new one.")


def test_a_name_that_a_killed_daemon_left_counts_for_nothing(cli: CommandLine, home: Path) -> None:
    (home / "data" / "clawbus.lock").write_text('{"pid": 1, "since": "2026-01-01T00:00:00.000Z"}')
    assert live_holder(home / "data") is None
    assert cli("send", "x", "-a", "echo", "-s", "s").envelope["next_actions"][0]["command"] == "clawbus serve"
