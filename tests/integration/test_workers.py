"""Roles and registrations with a real daemon: who owns what, who is refused, and what the lists and `/healthz` say."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import RealDaemon, eventually

ROLES = 'role = "host"\n'
AGENTS = """
[agents.echo]
provider = "echo"
[agents.far]
provider = "echo"
"""


@pytest.fixture(name="bus")
def _bus() -> Iterator[RealDaemon]:
    bus = RealDaemon(AGENTS)
    try:
        yield bus
    finally:
        bus.close()


def with_role(bus: RealDaemon, groups: str = "", role: str = ROLES) -> None:
    """Put the role before the tables, and groups behind them."""
    text = bus.config.read_text(encoding="utf-8")
    bus.config.write_text(f"{role}{text}\n{groups}", encoding="utf-8")


def confirmed(bus: RealDaemon) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        (one,) = bus.cli("worker", "list").result["workers"]
        return one if one["state"] == "registered" else None

    return eventually("confirmed", look, 90)


def test_a_registration_is_confirmed_shown_and_ended_and_a_crash_is_superseded(bus: RealDaemon) -> None:
    with_role(bus)
    bus.start()
    one = confirmed(bus)
    assert (one["role"], one["agents"], one["channels"]) == ("host", ["echo", "far"], ["local"])
    health = bus._get("/healthz")["result"]["worker"]
    assert (health["id"], health["role"]) == (one["id"], "host")
    assert health["role_counts"] == {"host": 2, "cluster": 0, "active": 2}
    assert health["last_registration_at"] >= health["started_at"]
    assert health["runtime"]["deployment_model"] == "installation"
    assert bus.status()["live"]["worker"]["id"] == one["id"]
    bus.ask("hello", agent="echo", session="s", wait_s=60)
    bus.kill()
    bus.start()
    second = confirmed(bus)
    rows = bus.cli("worker", "list", "--all").result["workers"]
    assert [(row["id"], row["end_reason"]) for row in rows] == [(second["id"], None), (one["id"], "superseded")]
    bus.ask("hello", agent="echo", session="s", wait_s=60)
    bus.stop()
    report = bus.cli("worker", "list").result
    assert report["workers"] == []
    assert {row["agent"]: row["last_completed_at"] is not None for row in report["agents"]} == {
        "echo": True,
        "far": False,
    }
    assert "0 workers" in bus.people("worker", "list")


REFUSED = {
    "two groups": ('[ownership.host]\nagents = ["far"]\n[ownership.cluster]\nagents = ["far"]\n', ROLES, "DUPLICATE_OWNERSHIP", 78),
    "needs the host": ('[ownership.cluster]\nagents = ["far"]\n', ROLES, "CONFIG_INVALID", 1),
    "no role": ('[ownership.host]\nagents = ["far"]\n', "", "CONFIG_INVALID", 1),
    "an unknown role": ("", 'role = "hots"\n', "CONFIG_INVALID", 1),
}  # fmt: skip


def test_what_has_two_owners_or_none_keeps_a_daemon_from_starting(bus: RealDaemon) -> None:
    text = bus.config.read_text(encoding="utf-8")
    for kind, (groups, role, code, exit_code) in REFUSED.items():
        bus.config.write_text(text, encoding="utf-8")
        with_role(bus, groups, role)
        said = bus.refused()
        assert (said.error, said.code) == (code, exit_code), kind
        assert bus.cli("config", "check").error == code, kind
    assert not bus.data.exists(), "nothing was opened"


def test_another_role_s_agent_is_refused_by_name_and_reload_moves_it(bus: RealDaemon) -> None:
    """Without a Docker engine: nothing is started here."""
    text = bus.config.read_text(encoding="utf-8").replace('kind = "process"', 'kind = "docker"')
    bus.config.write_text(text + '[docker]\nhost = "unix:///nonexistent/docker.sock"\n', encoding="utf-8")
    with_role(bus, '[ownership.host]\nagents = ["echo"]\n')
    bus.start()
    assert confirmed(bus)["agents"] == ["echo"]
    assert bus.cli("send", "hello", "--session", "far/s").error == "NOT_OWNED"
    bus.config.write_text(
        bus.config.read_text(encoding="utf-8").replace('["echo"]', '["echo", "far"]'), encoding="utf-8"
    )
    assert bus.cli("reload").ok
    eventually("registered", lambda: confirmed(bus)["agents"] == ["echo", "far"], 90)
    assert bus.cli("send", "hello", "--session", "far/s").ok


def on_docker(bus: RealDaemon, role: str, groups: str) -> None:
    """A role and its groups, without a Docker engine: nothing is started here."""
    text = bus.config.read_text(encoding="utf-8").replace('kind = "process"', 'kind = "docker"')
    bus.config.write_text(text + '[docker]\nhost = "unix:///nonexistent/docker.sock"\n', encoding="utf-8")
    with_role(bus, groups, f'role = "{role}"\n')


@pytest.fixture(name="second")
def _second() -> Iterator[RealDaemon]:
    bus = RealDaemon(AGENTS)
    try:
        yield bus
    finally:
        bus.close()


def test_two_data_folders_whose_roles_own_one_name_are_refused_while_both_live(
    bus: RealDaemon, second: RealDaemon
) -> None:
    """Each configuration is right by itself; together they give `far` two owners."""
    on_docker(bus, "host", '[ownership.host]\nagents = ["far"]\n')
    on_docker(second, "cluster", '[ownership.host]\nagents = ["echo"]\n')
    bus.start()
    assert confirmed(bus)["agents"] == ["far"]
    said = second.refused()
    assert (said.error, said.code) == ("DUPLICATE_OWNERSHIP", 78)
    assert f"agent 'far' is owned by a daemon with the role host (process {bus.process and bus.process.pid})" in str(
        said
    )
    assert bus.status()["live"]["worker"]["duplicate_ids"] == [], "who was refused owns nothing"
    bus.kill()
    second.start()
    assert confirmed(second)["agents"] == ["far"], "a death leaves nothing that blocks"
    assert bus.refused().error == "DUPLICATE_OWNERSHIP"
    text = bus.config.read_text(encoding="utf-8")
    bus.config.write_text(text.replace('agents = ["far"]', 'agents = ["echo"]'), encoding="utf-8")
    bus.start()
    bus.config.write_text(text, encoding="utf-8")
    assert bus.cli("reload").error == "DUPLICATE_OWNERSHIP"
    assert confirmed(bus)["agents"] == ["echo"], "a refused reload changes nothing"


def test_a_second_folder_of_the_same_role_serves_and_is_shown(bus: RealDaemon, second: RealDaemon) -> None:
    """A restore drill beside the original: each has its own messages. Without roles nothing is compared."""
    for one in (bus, second):
        with_role(one)
        one.start()
    assert second.ask("hello", agent="echo", session="s", wait_s=60)["text"] == "hello"
    for one in (bus, second):
        assert one._get("/healthz")["result"]["worker"]["duplicate_ids"] == ["agent echo", "agent far"]
        assert one.cli("worker", "list").error == "DUPLICATE_OWNERSHIP"
    assert second.stop() == 0
    assert bus._get("/healthz")["result"]["worker"]["duplicate_ids"] == []
    assert bus.cli("worker", "list").ok


def test_without_roles_two_folders_know_nothing_of_each_other(bus: RealDaemon, second: RealDaemon) -> None:
    for one in (bus, second):
        one.start()
        assert one.ask("hello", agent="echo", session="s", wait_s=60)["text"] == "hello"
    assert bus._get("/healthz")["result"]["worker"]["duplicate_ids"] == []
    assert second.cli("worker", "list").ok
