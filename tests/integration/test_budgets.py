"""An agent's daily budget, with a real daemon and the real command line: what is over waits, is explained, and goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from daemon.store.mailbox import MailboxEntry
from tests.support.agents import PROGRAM
from tests.support.daemon import RealDaemon, eventually
from tests.support.wreck import found, gone, repair

Make = Callable[..., RealDaemon]
AGENTS = '\n[agents.echo]\nprovider = "echo"\nturns_per_day = {limit}\n'
ACP = PROGRAM.with_name("scripted_acp_agent.py")


def notices(daemon: RealDaemon) -> list[MailboxEntry]:
    """What the mailbox was told before an answer."""
    with daemon.client() as client:
        return [one for one in client.read_mailbox("cli", 0, 1000) if not one.final]


def test_what_is_over_the_budget_waits_untried_until_a_refill_a_raised_limit_or_never(make_daemon: Make) -> None:
    daemon = make_daemon(AGENTS.format(limit=2))
    daemon.start()
    for text in ("one", "two"):
        assert daemon.ask(text, agent="echo", session="s")["text"].endswith(text)
    eventually("stopped", lambda: daemon.events("budget_used_up"))
    held = daemon.post("three", agent="echo", session="s")
    (notice,) = eventually("told", lambda: notices(daemon))
    assert notice.in_reply_to == held
    assert "limit for today" in notice.content
    assert [name for name in daemon.life("echo", "s", held) if name in ("told_to_wait", "answered")] == ["told_to_wait"]
    assert daemon.message("echo", "s", held)["status"] == "pending"

    def shown() -> bool:  # the counts are written every second
        today = daemon.cli("agent", "show", "echo").result["today"]
        return bool((today["turns"], today["used_up"]) == (2, "2 of 2 turns"))

    eventually("the turns of today", shown)
    assert "2 of 2 turns" in daemon.people("agent", "show", "echo")
    for view in ("status", "top"):
        assert "echo: 2 of 2 turns of today" in daemon.people(view)
    why = "Its agent's daily budget is used up. echo has used 2 of 2 turns"
    (session,) = daemon.cli("session", "list").result["sessions"]
    assert session["explanation"].startswith(why)
    assert daemon.cli("session", "show", "echo/s").result["held_up"].startswith(why)
    assert daemon.status()["attention"][0]["explanation"].endswith("`clawbus agent refill echo`")
    assert 'clawbus_agent_budget_stops_total{agent="echo"} 1.0' in daemon.metrics()

    daemon.stop()
    assert "echo: 2 of 2 turns of today" in daemon.people("status")
    assert daemon.cli("session", "list").result["sessions"][0]["explanation"].startswith(why)
    daemon.start()  # it goes on from what was counted, and a place is told once a day
    finding = found(daemon, "BUDGET_USED_UP")
    assert len(notices(daemon)) == 1
    repair(daemon, finding["command"])
    assert daemon.answer(held, agent="echo", session="s")["text"].endswith("three")
    assert daemon.message("echo", "s", held)["tries"] == 0

    assert daemon.ask("four", agent="echo", session="s")["text"].endswith("four")
    other = daemon.post("five", agent="echo", session="s")
    found(daemon, "BUDGET_USED_UP")
    daemon.config.write_text(daemon.config.read_text().replace("turns_per_day = 2", "turns_per_day = 20"))
    assert daemon.cli("reload").ok
    assert daemon.answer(other, agent="echo", session="s")["text"].endswith("five")
    gone(daemon, "BUDGET_USED_UP")


def test_the_tokens_of_a_cancelled_turn_count_and_the_next_message_waits(make_daemon: Make) -> None:
    command = json.dumps([sys.executable, "-I", "-S", str(ACP), "stay"])
    daemon = make_daemon(f'\n[agents.acp]\nprovider = "acp"\ncommand = {command}\ntokens_per_day = 30\n')
    daemon.start()
    mark = daemon.root / "mark"
    daemon.post(f"hang {mark}", agent="acp", session="s", id="m1")
    eventually("in mid-turn", mark.exists)
    assert daemon.cli("message", "cancel", "m1", "--session", "acp/s", "--reason", "enough").ok
    (event,) = eventually("stopped", lambda: daemon.events("budget_used_up"))
    assert event["spent"] == "30 of 30 tokens"
    daemon.post("pid", agent="acp", session="s", id="m2")
    eventually("told", lambda: notices(daemon))
    assert daemon.message("acp", "s", "m2")["status"] == "pending"
    assert daemon.cli("agent", "refill", "acp").result["refilled"][0]["tokens"] == 30
    daemon.answer("m2", agent="acp", session="s")
