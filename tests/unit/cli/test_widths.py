"""Every list and report in a terminal of 80 and of 40 columns: ids stay whole, and no line is wider, apart from what people copy."""

from pathlib import Path

import pytest
from rich.cells import cell_len

from daemon.core.printable import clean
from schema.ids import session_path
from tests.support.command_line import CommandLine
from tests.support.session_world import SessionWorld
from tests.unit.cli.long_names import AGENT, ANSWER, INCARNATION, MESSAGE, SESSION, TEXT, WORKING, fill

COMMANDS = ("repair: ", "read first: ", "or, ")  # one line each, so that they can be copied
# Each with the ids that it shows. Short forms are the ids' ends, so that the end of a whole one is found too.
SHOWN: dict[tuple[str, ...], tuple[str, ...]] = {
    ("status",): (WORKING[-8:],),
    ("top", "--once"): (WORKING[-8:],),
    ("session", "list"): (WORKING[-8:],),
    ("session", "show", AGENT, SESSION): (MESSAGE[-8:], ANSWER[-8:], INCARNATION),
    ("session", "show", AGENT, SESSION, "--message", WORKING): (WORKING,),
    ("run", "list"): (f"{WORKING[-8:]}@{INCARNATION[-8:]}",),
    ("run", "show", WORKING): (f"{WORKING}@{INCARNATION}",),
    ("message", "list"): (MESSAGE[-8:], WORKING[-8:]),
    ("message", "show", MESSAGE): (MESSAGE,),
    ("dead", "list"): (MESSAGE[-8:], ANSWER[-8:]),
    ("dead", "show", MESSAGE): (MESSAGE,),
    ("delivery", "list"): (f"{ANSWER[-8:-1]}B",),
    ("agent", "list"): (AGENT,),
    ("agent", "show", AGENT): (WORKING[-8:],),
    ("channel", "list"): ("hook-with-a-long-name",),
    ("doctor",): (ANSWER,),
    ("sweep", "stale"): (),
    ("mailbox",): (),
    ("config", "check"): (),
    ("image", "show"): (),
    ("install", "show"): (),
    ("route", "list"): (),
    ("question", "list"): (),
    ("worker", "list"): (AGENT,),
}


@pytest.fixture
def long_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    fill(home)


@pytest.mark.usefixtures("long_names")
@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("command", list(SHOWN), ids=" ".join)
def test_no_line_is_wider_and_ids_stay_whole(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes the pipe for a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = clean(cli(*command, "--pretty").out)
    wide = [line for line in said.splitlines() if cell_len(line) > columns]
    assert not [line for line in wide if not line.strip().startswith(COMMANDS) and " " in line.strip()], (
        "a path stays whole"
    )
    assert not [identity for identity in SHOWN[command] if identity not in said], "an id stays whole"


@pytest.mark.usefixtures("long_names")
@pytest.mark.parametrize("command", [("dead", "list"), ("run", "list")], ids=" ".join)
def test_a_wide_row_is_one_line_with_everything_in_it(cli: CommandLine, command: tuple[str, ...]) -> None:
    lines = cli(*command, "-o", "wide").out.splitlines()
    (row,) = [line for line in lines if MESSAGE in line]
    assert f"{AGENT}/{SESSION}" in row
    assert TEXT in row


@pytest.mark.usefixtures("long_names")
def test_a_list_shows_short_ids_and_every_command_takes_them(cli: CommandLine) -> None:
    short = MESSAGE[-8:]
    for command in (("dead", "list"), ("run", "list")):
        text = cli(*command, "--pretty").out
        assert short in text
        assert MESSAGE not in text.partition("next:")[0], command
    for part in (short, MESSAGE[:10]):
        assert cli("run", "show", part).result["message_id"] == MESSAGE
        assert cli("dead", "show", part).result["id"] == MESSAGE
        assert cli("session", "show", f"{AGENT}/{SESSION}", "--message", part).result["message_id"] == MESSAGE
    assert cli("run", "show", short.lower()).envelope["error"]["code"] == "UNKNOWN_MESSAGE"
    assert cli("message", "retry", short, "--reason", "x").result["retried_as"].startswith(MESSAGE)


@pytest.mark.usefixtures("long_names")
def test_a_part_of_several_ids_is_ambiguous_in_every_command(cli: CommandLine, home: Path) -> None:
    session = SessionWorld(session_path(home / "data" / "sessions", AGENT, SESSION))
    other = MESSAGE[:10] + "0" * 16
    session.accept(other)
    for command in (
        ("run", "show"), ("dead", "show"), ("dead", "requeue"), ("dead", "drop"), ("delivery", "retry"), ("delivery", "drop"),
        ("message", "retry"), ("message", "cancel"), ("session", "show", f"{AGENT}/{SESSION}", "--message"), ("logs", "--message"),
    ):  # fmt: skip
        error = cli(*command, MESSAGE[:10]).envelope["error"]
        assert error["code"] == "AMBIGUOUS_ID", command
        assert MESSAGE in error["message"]
        assert other in error["message"]


@pytest.mark.usefixtures("long_names")
def test_a_part_never_means_an_id_that_a_sender_chose(cli: CommandLine, home: Path) -> None:
    session = SessionWorld(session_path(home / "data" / "sessions", AGENT, SESSION))
    session.accept("ABCDEF-4711")
    assert cli("run", "show", "ABCDEF").envelope["error"]["code"] == "UNKNOWN_MESSAGE"
    session.accept("2C10N7")
    assert cli("run", "show", "2C10N7").result["message_id"] == "2C10N7", "a whole id goes before a part of another"
