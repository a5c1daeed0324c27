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

    return eventually("confirmed", look, 30)


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
    eventually("registered", lambda: confirmed(bus)["agents"] == ["echo", "far"], 30)
    assert bus.cli("send", "hello", "--session", "far/s").ok
