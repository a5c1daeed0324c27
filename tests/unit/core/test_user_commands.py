"""Which texts are commands, who may use them, and what a generation of a session is called."""

import pytest

from daemon.core.place_names import session_name
from daemon.core.routing import PlaceEvent, Senders
from daemon.core.templates import parse
from daemon.core.user_commands import CommandRule, command_of, generation_name, help_text, rules
from schema.ids import MAX_FOLDER, session_folder

KNOWN = rules({"digest": CommandRule(Senders.ADMIN, parse("Sum up. {arguments}")), "stop": CommandRule(Senders.ANYONE)})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/help", ("help", "")), (" /stop ", ("stop", "")), ("/stop@bot now", ("stop", "now")), ("/digest a\nb", ("digest", "a\nb")),
        ("/unknown", None), ("stop", None), ("see /stop", None), ("/", None), ("/Stop", None), ("//stop", None), ("/usr/bin", None),
    ],
)  # fmt: skip
def test_a_text_is_a_command_or_for_the_agent(text: str, found: tuple[str, str] | None) -> None:
    command = command_of(PlaceEvent("c", "p", "1", text), KNOWN)
    assert (None if command is None else (command.name, command.arguments)) == found


@pytest.mark.parametrize(
    ("rank", "names"),
    [(0, "help status stop"), (1, "help status stop new"), (2, "help status stop new approve refuse digest")],
)
def test_help_lists_what_one_may_do(rank: int, names: str) -> None:
    assert [line.split(":")[0] for line in help_text(KNOWN, rank).split("\n")] == [f"/{name}" for name in names.split()]


def test_a_generation_is_no_other_session_s_name() -> None:
    assert generation_name("chat:room", 1) == "chat:room"
    assert generation_name("chat:room", 2) == "chat:room~2"
    assert session_name("chat", "room~2") != "chat:room~2"
    long = "x" * 238
    made = {generation_name(long, number) for number in (1, 2, 3, 12)}
    assert len(made) == 4
    assert all(len(session_folder(one)) <= MAX_FOLDER for one in made)
