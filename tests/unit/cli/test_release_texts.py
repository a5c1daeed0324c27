"""What the commands of releases, deploys, workers and the source print: at every width, in ASCII, and with a reader that has left."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.cli.deploy import _follow
from daemon.cli.global_options import Globals
from daemon.cli.invocation import Invocation
from daemon.core.deploy_errors import DeployFailedError
from daemon.core.slot_steps import begin, claim, cut_over, failed, new_deploy, served
from daemon.core.slots import BLUE, GREEN, SlotState
from daemon.deploy.releases import Releases
from daemon.deploy.state_file import read_state, write_state
from daemon.workers.source import manifest_in
from tests.support.command_line import CommandLine
from tests.support.releases import small_release
from tests.unit.cli.test_every_command import gone, run

COMMANDS = (
    ("release", "list"), ("release", "show", "broken"), ("release", "prune"), ("deploy", "status"), ("source",),
    ("deploy", "verify-runtime"), ("deploy", "abort"), ("deploy", "start", "nothing"), ("worker", "list"),
)  # fmt: skip


@pytest.fixture(name="root")
def _root(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four releases, one of them changed and one without a manifest, and a deploy that failed for a long reason."""
    root = tmp_path / "opt"
    monkeypatch.setenv("CLAWBUS_DEPLOY__ROOT", str(root))
    first, second, third = (small_release(root, name) for name in ("one", "two", "three"))
    next(third.rglob("daemon/__init__.py")).write_text("changed")
    (root / "releases" / "broken").mkdir()
    releases, data = Releases(root), home / "data"
    releases.link(BLUE, releases.find(first.name))
    releases.link(GREEN, releases.find(second.name))
    data.mkdir(exist_ok=True)
    state = claim(SlotState(), BLUE, manifest_in(first).release, 1, "boot")
    begun = begin(
        state, new_deploy("D" * 26, state, manifest_in(second).release, 2, {}, no_rollback=False), 2, force=False
    )
    write_state(
        data, failed(begun, "warm", f"no daemon answered; see {'/a/long/path' * 9} and so on", 3, {"misses": 0})
    )
    return root


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal_and_none_is_blank_at_the_top(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    said = cli(*words, "--pretty").out
    assert not said.startswith("\n")
    assert "\n\n\n" not in said
    whole = [line for line in said.split("\n") if " " in line.strip()]  # a word that does not fit is copied whole
    assert [line for line in whole if len(line) > width] == []


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_it_ends_alike_wherever_its_output_goes(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    codes = [run(monkeypatch, words, encoding, os.memfd_create("out")) for encoding in ("utf-8", "ascii")]
    if words[-1] != "prune":  # the first one removed what there was
        codes.append(run(monkeypatch, words, "utf-8", gone()))
    assert len(set(codes)) == 1, codes


def test_a_refused_deploy_moves_no_link(cli: CommandLine, root: Path) -> None:
    """The standby would change its release, though nothing was begun: here no daemon answers."""
    before = Releases(root).slots()
    for name in before.values():
        said = cli("deploy", "start", name)
        assert said.envelope["error"]["code"] == "DAEMON_DOWN"
        assert Releases(root).slots() == before


def test_a_slot_that_leads_nowhere_is_repaired_by_what_the_fix_says(cli: CommandLine, root: Path) -> None:
    link = Releases(root).slot_link(GREEN)
    (usable,) = [name for slot, name in Releases(root).slots().items() if slot == GREEN]
    link.unlink()
    link.symlink_to("../releases/gone")
    said = cli("source").envelope
    command = said["fix"].split("`")[3]
    assert said["error"]["code"] == "SOURCE_DRIFT"
    assert command == "clawbus release link green RELEASE"
    assert cli(*command.replace("RELEASE", usable).split()[1:]).code == 0
    assert "slot" not in [one["what"] for one in cli("source").envelope["result"]["drift"]]


def test_a_deploy_that_nobody_ends_is_no_hold(cli: CommandLine, home: Path, root: Path) -> None:
    """The daemon is down since long ago: to wait for the deploy's end would be no advice."""
    state = read_state(home / "data")
    assert state.deploy is not None
    again = replace(
        state.deploy,
        state="running",
        gates=tuple(replace(one, status="pending", since=None) for one in state.deploy.gates),
    )
    moved = cut_over(replace(state, deploy=again), 5)
    write_state(home / "data", served(claim(moved, GREEN, "b" * 64, 6, "boot"), 7))
    said = cli("deploy", "verify-runtime")
    assert (said.code, said.envelope["result"]["verdict"]) == (1, "fail")
    (bake,) = [one for one in said.envelope["result"]["gates"] if one["gate"] == "bake"]
    assert (bake["status"], "no daemon answers" in bake["reason"]) == ("fail", True)
    assert "bake: " in said.envelope["error"]["message"]
    assert said.envelope["fix"].startswith("Start the daemon with `systemctl restart clawbus@green`")
    assert str(root)
    shown = cli("deploy", "status").envelope
    (bake,) = [one for one in shown["result"]["deploy"]["gates"] if one["name"] == "bake"]
    assert (bake["status"], "no daemon answers" in bake["reason"]) == ("fail", True)
    assert shown["next_actions"][0]["command"] == "systemctl restart clawbus@green"


def test_without_slots_and_a_daemon_there_is_nothing_that_is_one_source(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAWBUS_DEPLOY__ROOT", str(tmp_path / "none"))
    said = cli("source")
    assert (said.code, said.envelope["error"]["code"]) == (75, "SOURCE_UNKNOWN")


def test_where_slots_were_never_used_the_status_says_how_to_begin(cli: CommandLine) -> None:
    assert cli("deploy", "status").envelope["error"]["code"] == "RELEASES_UNUSED"


def test_a_state_that_only_another_user_may_read_is_not_to_be_removed(
    cli: CommandLine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("daemon.deploy.state_file.read_own_file", refuse)
    said = cli("deploy", "status").envelope
    assert said["error"]["code"] == "SLOT_STATE"
    assert "as root" in said["fix"]
    assert json.dumps(str(root))


def test_a_daemon_without_a_slot_is_refused_beside_slots_and_its_hint_leads_out(cli: CommandLine, home: Path) -> None:
    """A folder that was moved to a host without releases names a slot all the same."""
    write_state(home / "data", claim(SlotState(), GREEN, "r", 1, "boot"))
    refused = cli("serve")
    assert (refused.code, refused.envelope["error"]["code"]) == (75, "NOT_SERVING")
    assert "systemctl start clawbus@green" in refused.envelope["fix"]
    (named,) = [word.rstrip(".") for word in refused.envelope["fix"].split() if word.endswith("state.json.")]
    Path(named).unlink()
    assert read_state(home / "data").serving is None


def test_where_slots_are_used_without_systemd_the_start_that_is_named_is_not_refused(
    cli: CommandLine, home: Path
) -> None:
    """`clawbus serve` alone is refused beside slots, so it ended no finding."""
    write_state(home / "data", claim(SlotState(), GREEN, "r", 1, "boot"))
    (down,) = [one for one in cli("doctor").envelope["result"]["diagnoses"] if one["code"] == "DAEMON_DOWN"]
    assert down["command"] == "clawbus serve --slot green"
    assert "`clawbus serve --slot green`" in cli("dead", "requeue", "m1").envelope["fix"]


@pytest.mark.parametrize(
    ("unit", "given", "asked"),
    [
        ("clawbus@green", (), "clawbus@*"), ("second-bus", (), "second-bus"), (None, (), "clawbus"),
        ("clawbus@green", ("--unit", "clawbus@blue"), "clawbus@blue"),
    ],
)  # fmt: skip
def test_the_journal_of_both_slots_is_read(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, unit: str | None, given: tuple[str, ...], asked: str
) -> None:
    """What happened before the last cutover is in the other slot's."""
    names: list[str] = []
    monkeypatch.setattr("daemon.cli.invocation.unit_of", lambda _: unit)
    monkeypatch.setattr("daemon.cli.journal.last_entries", lambda name, *_: names.append(name) or [])
    assert cli("logs", "--journal", *given).result["unit"] == asked
    assert names == [asked]


@pytest.mark.usefixtures("root")
def test_duplicates_that_nobody_looked_for_are_not_none(cli: CommandLine) -> None:
    assert cli("worker", "list").result["duplicates"] is None
    assert "not known" in cli("worker", "list", "--pretty").out


def test_a_deploy_whose_end_is_not_on_record_is_no_pass(home: Path, root: Path) -> None:
    assert str(root)
    invocation = Invocation("deploy start", Globals(data=home / "data"))
    with pytest.raises(DeployFailedError, match="no longer on record"):
        _follow(invocation, "another")
    found = _follow(invocation, "D" * 26).deploy
    assert found is not None
    assert found.state == "failed"
