"""How two roles divide one configuration: by group, by need, and what is refused."""

import pytest

from daemon.core.deploy_errors import DuplicateOwnershipError
from daemon.core.errors import ConfigError
from daemon.core.ownership import Group, Ownership, Role, crossing_faults, divide

NEEDS = {"files": "it mounts /srv", "chat": None, "code": None}


def test_without_roles_a_daemon_owns_everything() -> None:
    found = divide("", {"host": Group(), "cluster": Group()}, NEEDS, ["hook"])
    assert found == Ownership()
    assert found.owns_agent("any")
    assert found.owns_channel("any")


def test_an_agent_without_a_group_is_in_the_one_that_it_needs() -> None:
    found = divide("cluster", {"host": Group(("code",), ("hook",))}, NEEDS, ["hook"])
    assert found.agents == {"files": "host", "chat": "cluster", "code": "host"}
    assert [name for name in NEEDS if found.owns_agent(name)] == ["chat"]
    assert found.elsewhere == {"files": "host", "code": "host"}
    assert (found.owns_channel("hook"), found.owns_channel("local")) == (False, True)


@pytest.mark.parametrize("role", ["", "host", "cluster"])
@pytest.mark.parametrize(
    "groups",
    [
        {"host": Group(("chat",)), "cluster": Group(("chat",))},
        {"host": Group(("chat", "chat"))},
        {"host": Group((), ("hook",)), "cluster": Group((), ("hook",))},
    ],
)
def test_no_role_starts_with_a_name_in_two_groups(role: Role, groups: dict[str, Group]) -> None:
    wanted = DuplicateOwnershipError if role else ConfigError  # without a role nothing is divided at all
    with pytest.raises(wanted):
        divide(role, groups, NEEDS, ["hook"])


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"cluster": Group(("files",), ("hook",))}, "'files' needs the host: it mounts /srv"),
        ({"host": Group(("nobody",), ("hook",))}, "no agent 'nobody'"),
        ({"host": Group((), ("hook", "pigeon"))}, "no channel 'pigeon'"),
        ({"host": Group(("chat",))}, "'hook' is in no group"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(groups: dict[str, Group], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        divide("host", groups, NEEDS, ["hook"])


def test_an_agent_and_a_channel_of_two_roles_cannot_be_joined() -> None:
    found = Ownership("host", {"chat": "cluster", "files": "host"}, {"hook": "host"})
    links = [("routes.a", "chat", "hook"), ("routes.b", "files", "hook"), ("routes.c", "chat", "local")]
    assert list(crossing_faults(found, links)) == ["routes.a: agent 'chat' is cluster's, and channel 'hook' is host's"]
