"""What the commands about people and routes ask for."""

from typing import Any

import pytest

from daemon.cli.main import main
from daemon.core.agent_verbs import AddRoute
from daemon.core.people_verbs import DecidePairing, SetRole
from daemon.core.verb import HostVerb
from daemon.inspect import people_reading
from tests.support.command_line import CommandLine


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[HostVerb]:
    found: list[HostVerb] = []

    def execute(_: object, verb: HostVerb) -> dict[str, Any]:
        found.append(verb)
        return {"name": "ann", "channel": "local", "sender": "x", "agent": "coder"}

    monkeypatch.setattr("daemon.cli.executor.execute", execute)
    return found


@pytest.mark.parametrize(
    ("line", "role", "agent", "scope"),
    [
        ("user role ann owner", "owner", "", "any"),
        ("user role ann none --agent coder --scope group", None, "coder", "group"),
    ],
)
def test_a_role_is_for_all_agents_or_for_one(
    asked: list[HostVerb], line: str, role: str | None, agent: str, scope: str
) -> None:
    assert main(line.split()) == 0
    (verb,) = asked
    assert isinstance(verb, SetRole)
    assert (verb.name, verb.role, verb.agent, verb.scope) == ("ann", role, agent, scope)


def test_a_route_and_an_approval_say_what_was_typed(asked: list[HostVerb]) -> None:
    line = "route add team --channel chat --place -100123 --agent coder --engage pattern --pattern ^hi"
    assert main(line.split()) == 0
    assert main(["pairing", "approve", "7K2M9QXA", "--user", "ann"]) == 0
    route, pairing = asked
    assert isinstance(route, AddRoute)
    assert {"place": "-100123", "pattern": "^hi", "senders": "known"}.items() <= route.keys.items()
    assert isinstance(pairing, DecidePairing)
    assert (pairing.code, pairing.approve, pairing.user) == ("7K2M9QXA", True, "ann")


def test_one_request_of_a_stranger_is_counted_as_one(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("code", "channel", "sender", "agent", "scope", "state")
    one = {**dict.fromkeys(keys, "x"), "asked_at": 0}
    monkeypatch.setattr(people_reading, "read_pairings", lambda *_, **__: [one])
    assert cli("pairing", "list", "--pretty").out.splitlines()[0].rstrip() == "1 request"
