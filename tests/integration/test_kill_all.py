"""`clawbus session kill --all`: no agent of the installation is left, with the daemon up or down, and no message is lost."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]


def in_mid_turn(daemon: RealDaemon, session: str) -> str:
    """Send a message and return its id once its program is at work. `finish` lets the next try end."""
    mark = daemon.root / f"{session}.hang"
    message_id = daemon.post(f"hang {mark}", agent="prog", session=session)
    eventually("in mid-turn", mark.exists)
    return message_id


def finish(daemon: RealDaemon, session: str) -> None:
    (daemon.root / f"{session}.hang.go").touch()


def living(daemon: RealDaemon) -> list[int]:
    """The process groups of recorded agents that still have a living process."""
    groups: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            groups.add(int(fields[2]))
    return sorted(groups & {one["pid"] for one in daemon.records()})


def told(daemon: RealDaemon, message_id: str, session: str) -> str:
    finish(daemon, session)
    return daemon.answer(message_id, agent="prog", session=session)["text"]


def test_with_the_daemon_up_each_agent_is_killed_and_its_message_is_tried_again(make_daemon: Make) -> None:
    daemon = make_daemon(obedient() + ECHO)
    daemon.start()
    busy = in_mid_turn(daemon, "busy")
    daemon.ask("hello", agent="echo", session="idle")
    before = {(name, key): daemon.leader(name, key) for name, key in (("prog", "busy"), ("echo", "idle"))}
    assert set(before.values()) <= set(living(daemon))
    result = daemon.cli("session", "kill", "--all", "--reason", "a test").result
    assert (result["source"], result["killed"]) == ("daemon", 2)
    assert {(one["agent"], one["session"]) for one in result["agents"]} == set(before)
    assert all(one["killed"] and one["exit_code"] == 137 for one in result["agents"])
    assert not set(before.values()) & set(living(daemon))
    assert told(daemon, busy, "busy") == "done"
    assert daemon.ask("still here", agent="echo", session="idle") == {"text": "still here"}
    sql = "SELECT detail FROM message_history WHERE event = 'session_killed' AND message_id = '@session'"
    (noted,) = daemon.rows("prog", "busy", sql)
    assert json.loads(noted["detail"])["reason"] == "a test"


def test_with_the_daemon_down_nothing_is_left_and_the_next_daemon_goes_on(make_daemon: Make) -> None:
    daemon = make_daemon(obedient() + ECHO)
    daemon.start()
    messages = {session: in_mid_turn(daemon, session) for session in ("one", "two")}
    daemon.ask("hello", agent="echo", session="idle")
    daemon.kill()
    assert len(living(daemon)) == 3
    result = daemon.cli("session", "kill", "--all", "--reason", "a test").result
    assert (result["source"], result["killed"]) == ("files", 3)
    assert living(daemon) == []
    assert daemon.cli("session", "kill", "--all").result["agents"] == [], "and again, with nothing to do"
    daemon.start()
    for session, message_id in messages.items():
        assert told(daemon, message_id, session) == "done"
        assert daemon.message("prog", session, message_id)["tries"] == 1
    assert [one["content"]["text"] for one in daemon.entries()].count("done") == 2
    assert daemon.ask("still here", agent="echo", session="idle") == {"text": "still here"}


def test_agents_of_the_other_runtime_kind_are_ended_too(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    in_mid_turn(daemon, "s")
    daemon.stop()
    daemon.config.write_text(daemon.config.read_text().replace('kind = "process"', 'kind = "docker"'))
    daemon.environment["DOCKER_HOST"] = f"unix://{daemon.root}/nobody.sock"
    assert daemon.cli("session", "kill", "--all").result["killed"] == 1
    assert living(daemon) == []
