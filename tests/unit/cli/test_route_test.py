"""`clawbus route test` explains a table of events, from a configuration, a route added by command, and people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from daemon.cli.main import main
from daemon.core.routing import RefusalReason
from daemon.store.data_folder import DataFolder
from daemon.store.registry import Registry
from tests.support.clock import MovedClock

CONFIG = """
data_dir = "data"
[runtime]
kind = "process"
[agents.andy]
[agents.bob]
[channels.webhook]
[channels.webhook.hooks.github]
secret = "inbound-secret"
sender = "{body.sender.login}"
[commands.digest]
text = "Summarise {arguments}"
[[routes]]
name = "team"
channel = "local"
place = "kitchen"
agent = "andy"
engage = "mention-sticky"
otherwise = "context"
[[routes]]
name = "works"
channel = "local"
place = "kitchen"
agent = "bob"
engage = "pattern"
pattern = "(?i)\\\\bbuild\\\\b"
senders = "admin"
[[routes]]
name = "hall"
channel = "local"
place = "hall"
agent = "andy"
unknown = "ask"
session = "per-sender"
[[routes]]
name = "pulls"
channel = "webhook"
place = "github"
agent = "bob"
senders = "anyone"
session = "pr-{body.pull_request.number|body.issue.number}"
"""
KITCHEN, HALL, GITHUB = (("local", "kitchen"), ("local", "hall"), ("webhook", "github"))


class Row(NamedTuple):
    what: str
    place: tuple[str, str]
    options: tuple[str, ...]
    targets: list[tuple[str, str, bool]]  # agent, session, whether it is woken
    refusals: list[tuple[str | None, str]]  # agent, reason
    said: str  # a part of what a person reads


TABLE = (
    Row("a mention", KITCHEN, ("--sender", "ann", "--mention", "hi"), [("andy", "local:kitchen", True)],
        [("bob", "NOT_ENGAGED")], "wakes andy/local:kitchen (route team: the agent is mentioned)"),
    Row("no mention", KITCHEN, ("--sender", "ann", "hi"), [("andy", "local:kitchen", False)], [("bob", "NOT_ENGAGED")],
        "is context for andy/local:kitchen"),
    Row("a thread", KITCHEN, ("--sender", "ann", "--thread", "t/1", "--mention"), [("andy", "local:kitchen:t%2F1", True)],
        [("bob", "NOT_ENGAGED")], "not bob (route works): NOT_ENGAGED: the text does not match"),
    Row("two agents", KITCHEN, ("--sender", "max", "--mention", "BUILD it"),
        [("andy", "local:kitchen", True), ("bob", "local:kitchen", True)], [], "wakes bob/local:kitchen"),
    Row("a member where an admin is wanted", KITCHEN, ("--sender", "ann", "build it"), [("andy", "local:kitchen", False)],
        [("bob", "ROLE_TOO_LOW")], "the user ann has no role admin or higher for agent bob in a group"),
    Row("a stranger", KITCHEN, ("--sender", "tom", "build it"), [], [("andy", "UNKNOWN_SENDER"), ("bob", "UNKNOWN_SENDER")],
        "the sender tom is not a known user"),
    Row("a stranger who may ask", HALL, ("--sender", "tom", "hi"), [], [("andy", "APPROVAL_PENDING")], "an approver is asked"),
    Row("one session for each sender", HALL, ("--sender", "ann", "hi"), [("andy", "local:hall:@ann", True)], [], "every message"),
    Row("no sender", HALL, ("hi",), [], [("andy", "UNKNOWN_SENDER")], "the event names no sender"),
    Row("a revoked user", KITCHEN, ("--sender", "eve", "--mention"), [], [("andy", "SENDER_REVOKED"), ("bob", "NOT_ENGAGED")],
        "the sender eve was revoked"),
    Row("a command of the bus", KITCHEN, ("--sender", "ann", "/stop"), [("andy", "local:kitchen", True)],
        [("bob", "ROLE_TOO_LOW")], "is a command"),
    Row("a command of the operator's", KITCHEN, ("--sender", "ann", "/digest today"), [("andy", "local:kitchen", True)],
        [("bob", "ROLE_TOO_LOW")], "is a command"),
    Row("another word after a slash", KITCHEN, ("--sender", "ann", "/dance"), [("andy", "local:kitchen", False)],
        [("bob", "NOT_ENGAGED")], "kept as context"),
    Row("an edit", HALL, ("--sender", "ann", "--kind", "edit", "hi"), [], [("andy", "NOT_A_MESSAGE")], "an edit wakes no agent"),
    Row("a pull request", GITHUB, ("--sender", "octocat", "--body", '{"pull_request": {"number": 7}}'),
        [("bob", "pr-7", True)], [], "wakes bob/pr-7 (route pulls"),
    Row("an issue", GITHUB, ("--body", '{"issue": {"number": 8}}'), [("bob", "pr-8", True)], [], "wakes bob/pr-8"),
    Row("an event without the field", GITHUB, ("--body", '{"zen": "Keep it simple."}'), [], [("bob", "NO_SESSION_NAME")],
        "no session can be named"),
    Row("a stored route whose agent is gone", ("local", "old"), ("hi",), [], [("gone", "AGENT_GONE")], "there is no agent gone"),
    Row("a place without a route", ("local", "attic"), ("hi",), [], [(None, "NO_ROUTE")], "nobody: NO_ROUTE"),
    Row("an invisible character", ("local", "kit\u200bchen"), ("hi",), [], [(None, "BAD_NAME")], "nobody: BAD_NAME"),
    Row("a name that is written another way", ("local", "\uff4bitchen"), ("hi",), [], [(None, "NO_ROUTE")], "NO_ROUTE"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with three users and a route whose agent is gone, made by commands without a daemon."""
    root = tmp_path_factory.mktemp("routes")
    file = root / "clawbus.toml"
    config = CONFIG.replace('"data"', f'"{root}/data"')
    file.write_text(config + "[agents.gone]\n", encoding="utf-8")
    with DataFolder.open(root / "data", MovedClock()) as opened:
        Registry(opened.central_db).with_file(lambda _: None)
    asked: list[tuple[str, ...]] = [
        ("route", "add", "old", "--channel", "local", "--place", "old", "--agent", "gone", "--senders", "anyone")
    ]
    for name, role in (("ann", "member"), ("max", "admin"), ("eve", "owner")):
        asked += [("user", "add", name), ("user", "bind", name, "local", name), ("user", "role", name, role)]
    asked.append(("user", "revoke", "eve"))
    for arguments in asked:
        assert main(["--config", str(file), *arguments]) == 0
    file.write_text(config, encoding="utf-8")
    return root


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_an_event_is_explained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], row: Row
) -> None:
    monkeypatch.chdir(folder)
    channel, place = row.place
    asked = ["route", "test", "--channel", channel, "--place", place, *row.options]
    assert main([*asked, "-o", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["result"]
    assert [(one["agent"], one["session"], one["wakes"]) for one in found["targets"]] == row.targets
    assert [(one["agent"], one["reason"]) for one in found["refusals"]] == row.refusals
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*asked, "-o", "text"]) == 0
    assert row.said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("channel", "said"),
    [("webhok", "did you mean webhook?"), ("nope", "known: local, webhook.")],
)
def test_a_channel_that_there_is_not_is_a_usage_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], channel: str, said: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(["route", "test", "--channel", channel, "--place", "x", "hi", "-o", "json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "USAGE"
    assert f"there is no channel {channel!r}; {said}" in error["message"]


def test_every_reason_is_explained() -> None:
    assert {reason for row in TABLE for _, reason in row.refusals} == {one.value for one in RefusalReason}


def test_two_routes_that_claim_the_same_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the file by `config check`, by command at once; another priority ends it."""
    file = tmp_path / "clawbus.toml"
    file.write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with DataFolder.open(tmp_path / "data", MovedClock()) as opened:
        Registry(opened.central_db).with_file(lambda _: None)
    add = ["route", "add", "again", "--channel", "local", "--place", "hall", "--agent", "andy"]
    assert main([*add, "-o", "json"]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert refused["error"]["code"] == "ROUTE_REFUSED"
    assert "claims local hall for agent andy, as route hall does; give one of them another priority" in str(refused)
    assert main([*add, "--priority", "1"]) == 0
    second = '[[routes]]\nname = "other"\nchannel = "local"\nplace = "hall"\nagent = "andy"\nsenders = "anyone"\n'
    file.write_text(CONFIG + second, encoding="utf-8")
    capsys.readouterr()
    assert main(["config", "check", "-o", "json"]) == 1
    assert "claims local hall for agent andy, as route hall does" in capsys.readouterr().out
    file.write_text(CONFIG + second + "priority = 2\n", encoding="utf-8")
    assert main(["config", "check"]) == 0
