"""Agents and daemons that die, with the process runtime: nothing is lost, nothing is answered twice, all of it is told."""

import os
import signal
import sqlite3
from collections.abc import Callable

import pytest

from tests.support.agents import obedient
from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]


def replies(daemon: RealDaemon, message_id: str) -> list[str]:
    """The texts of every answer to this message."""
    return [one["content"]["text"] for one in daemon.entries() if one["in_reply_to"] == message_id]


def in_mid_turn(daemon: RealDaemon, session: str) -> str:
    """Send a message and return its id once its program is at work. `finish` lets it, and every later turn, end."""
    mark = daemon.root / session
    message_id = daemon.post(f"hang {mark}", agent="prog", session=session)
    eventually("in mid-turn", lambda: mark.exists() and mark.read_text())
    return message_id


def finish(daemon: RealDaemon, session: str) -> None:
    (daemon.root / f"{session}.go").touch()


def test_a_killed_agent_costs_a_try_and_the_message_is_answered(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id = in_mid_turn(daemon, "s")
    first = daemon.container("prog", "s")["incarnation"]
    os.killpg(daemon.leader("prog", "s"), signal.SIGKILL)
    finish(daemon, "s")
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    eventually("settled", lambda: daemon.message("prog", "s", message_id)["status"] == "completed")

    assert daemon.message("prog", "s", message_id)["tries"] == 1
    life = daemon.life("prog", "s", message_id)
    assert life.count("claimed") == 2
    assert life.count("retry_scheduled") == life.count("attempt_orphaned") == life.count("delivered") == 1
    outcomes = {one["incarnation"]: one["outcome"] for one in daemon.show("prog", "s")["attempts"]}
    assert outcomes.pop(first) == "orphaned"
    assert list(outcomes.values()) == ["completed"]
    assert replies(daemon, message_id) == ["done"]
    daemon.at_rest = True


def test_a_killed_daemon_kills_no_agent_and_delivers_its_answer_once(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id = in_mid_turn(daemon, "s")
    first = daemon.container("prog", "s")
    daemon.kill()
    finish(daemon, "s")
    eventually("the answer is written while no daemon lives", lambda: _answered(daemon))
    daemon.start()
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert daemon.container("prog", "s") == first, "adopted"
    assert daemon.events("container_adopted")
    pid = daemon.ask("pid", agent="prog", session="s")["text"]
    assert os.getpgid(int(pid)) == daemon.leader("prog", "s")
    assert len(daemon.show("prog", "s")["incarnations"]) == 1
    assert replies(daemon, message_id) == ["done"]
    assert daemon.message("prog", "s", message_id)["tries"] == 0


def _answered(daemon: RealDaemon) -> bool:
    """Read here: with the daemon dead nobody else looks."""
    path = daemon.folder("prog", "s") / "out" / "outbound.db"
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        return bool(connection.execute("SELECT count(*) FROM messages_out").fetchone()[0])
    except sqlite3.OperationalError:
        return False  # in its commit
    finally:
        connection.close()


def test_a_daemon_killed_again_and_again_answers_each_message_once(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    sent: list[str] = []
    for number in range(4):
        daemon.start()
        sent += [daemon.post(f"say {number}.{n}", agent="prog", session=f"s{n}") for n in range(2)]
        daemon.kill()
    daemon.start()
    for position, message_id in enumerate(sent):
        daemon.answer(message_id, agent="prog", session=f"s{position % 2}")
    answered: list[str] = []
    for entry in daemon.entries():
        answered += entry["content"].get("answers", [entry["in_reply_to"]])
    assert sorted(answered) == sorted(sent)
    eventually("settled", lambda: daemon.status()["queues"]["pending"] == 0)
    daemon.at_rest = True


def test_a_stopped_daemon_leaves_its_agents_and_the_next_one_adopts_them(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id = in_mid_turn(daemon, "busy")
    daemon.ask("say up", agent="prog", session="quiet")
    before = {name: daemon.container("prog", name) for name in ("busy", "quiet")}
    assert daemon.stop() == 0
    assert not daemon.socket.exists()
    daemon.start()
    assert {name: daemon.container("prog", name) for name in before} == before
    finish(daemon, "busy")
    assert daemon.answer(message_id, agent="prog", session="busy") == {"text": "done"}
    assert daemon.ask("say on", agent="prog", session="quiet") == {"text": "on"}


def test_an_agent_that_died_while_no_daemon_lived_is_replaced(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id = in_mid_turn(daemon, "s")
    leader = daemon.leader("prog", "s")
    daemon.kill()
    os.killpg(leader, signal.SIGKILL)
    finish(daemon, "s")
    daemon.start()
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert daemon.events("incarnation_gone")
    assert daemon.message("prog", "s", message_id)["tries"] == 1
    assert len(daemon.show("prog", "s")["incarnations"]) == 2


def test_an_idle_agent_is_stopped_at_no_cost_and_comes_back(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(), runtime_keys="idle_stop_s = 0.5")
    daemon.start()
    message_id = daemon.post("say up", agent="prog", session="s")
    daemon.answer(message_id, agent="prog", session="s")
    eventually("stopped", lambda: daemon.running("prog", "s") is None)
    ended = daemon.show("prog", "s")["incarnations"][0]
    assert (ended["end_reason"], ended["exit_code"]) == ("idle", 0)
    assert daemon.ask("say on", agent="prog", session="s") == {"text": "on"}
    assert daemon.message("prog", "s", message_id)["tries"] == 0
    assert daemon.show("prog", "s")["registry"]["spawn_failures"] == 0
    assert len(daemon.show("prog", "s")["incarnations"]) == 2


def test_a_message_for_a_first_poll_is_not_kept_waiting_by_an_idle_agent(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(), runtime_keys="idle_stop_s = 0.5")
    daemon.start()
    daemon.ask("say up", agent="prog", session="s")
    assert daemon.ask("say morning", agent="prog", session="s", on_wake=True) == {"text": "morning"}
    _, first = daemon.show("prog", "s")["incarnations"]
    assert first["end_reason"] == "idle"


def test_a_message_that_always_kills_its_agent_becomes_a_dead_letter_and_the_sender_is_told(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(), sweep_keys="max_tries = 3")
    daemon.start()
    said = daemon.cli("send", "die 99", "--agent", "prog", "--session", "s", "--wait", "60")
    assert said.error == "AGENT_FAILED"
    assert "3 tries" in said.envelope["error"]["message"]
    message_id = said.envelope["result"]["message_id"]
    row = daemon.message("prog", "s", message_id)
    assert (row["status"], row["tries"], row["last_event"]["event"]) == ("failed", 3, "failed")
    assert len(daemon.show("prog", "s")["attempts"]) == 3

    status = daemon.status()
    assert status["queues"]["dead_letters"] == 1
    assert [one["session"] for one in status["attention"]] == ["s"]
    assert message_id in status["attention"][0]["explanation"]
    assert daemon.ask("say on", agent="prog", session="s") == {"text": "on"}, "the session goes on"


def test_a_message_that_kills_its_agent_twice_is_answered_by_the_third(make_daemon: Make) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    message_id = daemon.post("die 2", agent="prog", session="s")
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "died 2 times"}
    eventually("settled", lambda: daemon.message("prog", "s", message_id)["status"] == "completed")
    assert daemon.message("prog", "s", message_id)["tries"] == 2


def test_a_turn_without_a_sign_of_life_is_ended_by_the_sweep(make_daemon: Make) -> None:
    """The program is alive, but neither it nor the tool it declared may be silent for so long."""
    daemon = make_daemon(obedient(timeout_s=8.0), sweep_keys="claim_stuck_s = 4.0\nmax_declared_s = 8.0")
    daemon.start()
    message_id = in_mid_turn(daemon, "s")
    os.kill(_runner(daemon), signal.SIGSTOP)
    finish(daemon, "s")
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    assert [event["reason"] for event in daemon.events("container_stuck")] == ["claim_stuck"]
    assert daemon.message("prog", "s", message_id)["tries"] == 1


def _runner(daemon: RealDaemon) -> int:
    """The runner's pid, as its program wrote it beside its own."""
    return int((daemon.root / "s").read_text().split()[1])


@pytest.mark.parametrize("times", [3])
def test_a_paused_daemon_takes_up_where_it_was(make_daemon: Make, times: int) -> None:
    daemon = make_daemon(obedient())
    daemon.start()
    for number in range(times):
        message_id = in_mid_turn(daemon, f"s{number}")
        daemon.pause()
        finish(daemon, f"s{number}")
        daemon.resume()
        assert daemon.answer(message_id, agent="prog", session=f"s{number}") == {"text": "done"}
        assert daemon.message("prog", f"s{number}", message_id)["tries"] == 0


def test_the_cap_is_kept_and_an_idle_agent_makes_room(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(), runtime_keys="max_containers = 2")
    daemon.start()
    sent = [daemon.post(f"say {n}", agent="prog", session=f"s{n}") for n in range(5)]
    for number, message_id in enumerate(sent):
        assert daemon.answer(message_id, agent="prog", session=f"s{number}") == {"text": str(number)}
        # One whose exit is confirmed has made room, while its files are still being settled.
        assert sum(one["phase"] != "exited" for one in daemon.status()["live"]["running"]) <= 2
