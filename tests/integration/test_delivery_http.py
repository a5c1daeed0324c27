"""Delivery against real HTTP receivers that fail, stall, reset, answer late, twice or nonsense, and count keys.

The promise: every answer ends in exactly one receipt or one dead letter, each attempt has the same idempotency key, and
what waits for one place holds back no other.
"""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from daemon.core.message_verbs import DropDead, RequeueDead
from schema.instants import from_text
from tests.support.agents import obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.http_receiver import (
    Connection,
    Fault,
    Receiver,
    misbehaving,
    ok,
    ok_then_close,
    place,
    raw,
    reset_read,
    reset_unread,
    stall,
    status,
    torn,
    twice,
)
from tests.support.webhooks import free_port

Make = Callable[..., RealDaemon]

CHANNEL = """
[channels.webhook]
listen = "127.0.0.1:{port}"
connect_timeout_s = {patience}
read_timeout_s = {patience}
total_timeout_s = {patience}
{keys}
"""
# A send that stalls is given up after the first. A test that kills the daemon in mid-send has the second.
PATIENCE_S = 4.0
FAR_S = 30.0
HOOK = """
[channels.webhook.hooks.{name}]
agent = "prog"
session = "*"
secret = "inbound-secret"
reply_url = "{url}"
reply_secret = "outbound-secret"
"""


def tables(keys: str = "", patience: float = PATIENCE_S, **urls: str) -> str:
    hooks = "".join(HOOK.format(name=name, url=url) for name, url in urls.items())
    return obedient() + CHANNEL.format(port=free_port(), keys=keys, patience=patience) + hooks


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with misbehaving() as found:
        yield found


def say(daemon: RealDaemon, session: str, words: str, hook: str = "work") -> str:
    return daemon.post(f"say {words}", agent="prog", session=session, address=place(hook))


def receipts(daemon: RealDaemon, session: str) -> list[dict[str, Any]]:
    return daemon.rows("prog", session, "SELECT * FROM delivered ORDER BY delivered_at, message_out_id")


def delivered(daemon: RealDaemon, session: str, count: int = 1) -> list[dict[str, Any]]:
    """The receipts, once there are `count` and nothing is open."""

    def done() -> list[dict[str, Any]] | None:
        found = [one for one in receipts(daemon, session) if one["status"] == "delivered"]
        return found if len(found) >= count and not tracked(daemon, session) else None

    return eventually(f"{count} receipts in {session}", done)


def tracked(daemon: RealDaemon, session: str) -> list[dict[str, Any]]:
    return daemon.rows("prog", session, "SELECT * FROM delivery_attempts ORDER BY seq")


def failures(daemon: RealDaemon, session: str) -> list[dict[str, Any]]:
    """The failed attempts as the history tells them, with the wait that was decided (milliseconds)."""
    rows = daemon.rows("prog", session, "SELECT * FROM message_history WHERE event = 'delivery_failed' ORDER BY id")
    found = [{"at": row["at"], **json.loads(row["detail"])} for row in rows]
    return [{**one, "wait": (from_text(one["next_attempt_at"]) or 0) - one["at"]} for one in found]


def dead(daemon: RealDaemon, session: str) -> dict[str, Any]:
    """The session's one dead letter."""
    (letter,) = eventually("a dead letter", lambda: letters(daemon, session))
    return letter


def letters(daemon: RealDaemon, session: str | None = None) -> list[dict[str, Any]]:
    with daemon.client() as client:
        return client.dead_letters(("prog", session) if session is not None else None)["letters"]


def repair(daemon: RealDaemon, action: str, letter_id: str, session: str) -> dict[str, Any]:
    with daemon.client() as client:
        verb = {"requeue": RequeueDead, "drop": DropDead}[action]
        return client.execute(verb("prog", session, by="tester", reason="a test", id=letter_id))


# --- one daemon and one receiver for all that a send may end in


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealDaemon, Receiver]]:
    with misbehaving() as found:
        daemon = RealDaemon(tables(work=found.url))
        try:
            daemon.start()
            yield daemon, found
        finally:
            daemon.close()


GARBAGE = b"\x00\xff\xfe this is no HTTP \r\n\r\n"
SURVIVED: dict[str, tuple[list[Fault], int]] = {
    # What is done to the first sends, and how often the receiver has acted on the key in the end.
    "fails": ([status(500), status(503), status(502)], 1),
    "is_busy": ([status(429), status(408), status(409)], 1),
    "resets_unread": ([reset_unread(), reset_unread()], 1),
    "resets_after_acting": ([reset_read(), reset_read()], 3),
    "stalls": ([stall()], 1),
    "acts_and_stalls": ([stall(takes=True)], 2),
    "answers_garbage": ([raw(GARBAGE), raw(b"")], 1),
    "answers_half_a_head": ([raw(b"HTTP/1.1 200 x\r\ncontent-le")], 1),
    "answers_twice": ([twice()], 1),
    "tears_the_body_of_its_yes": ([torn()], 1),
    "closes_behind_its_yes": ([ok_then_close()], 1),
}


@pytest.mark.parametrize("what", SURVIVED)
def test_a_receiver_that(what: str, shared: tuple[RealDaemon, Receiver], checked_after: Callable[..., None]) -> None:
    """Two answers to one place: both arrive, in order, each with one key on all its attempts and one receipt."""
    daemon, receiver = shared
    faults, acted = SURVIVED[what]
    session = what.replace("_", "-")
    receiver.script[session] = list(faults)
    say(daemon, session, "first")
    eventually("tried", lambda: receiver.of(session) or receiver.resets[session])
    say(daemon, session, "second")
    found = delivered(daemon, session, 2)
    receiver.release.set()
    receiver.release.clear()

    requests = receiver.of(session)
    by_text = {text: [one for one in requests if one.text == text] for text in ("first", "second")}
    assert [len({one.key for one in by_text[text]}) for text in by_text] == [1, 1]
    assert [one.text for one in requests] == ["first"] * len(by_text["first"]) + ["second"]
    assert len({one.body for one in by_text["first"]}) == 1
    assert receiver.taken[by_text["first"][0].key] == acted
    assert receiver.taken[by_text["second"][0].key] == 1
    refused = [fault for fault in faults if not fault.takes or acted > 1]
    assert len(by_text["first"]) + receiver.resets[session] == len(refused) + 1
    assert [one["status"] for one in found] == ["delivered", "delivered"]
    assert {one["code"] for one in failures(daemon, session)} <= {"DELIVERY_TRANSIENT"}
    assert len(failures(daemon, session)) == len(refused)
    assert "stale" not in {one["platform_message_id"] for one in found}, "another send's answer"
    checked_after(daemon)


def test_a_late_answer_is_nobody_s(shared: tuple[RealDaemon, Receiver]) -> None:
    """The yes to a send that was given up comes after the next send began: it is no receipt for that one."""
    daemon, receiver = shared
    receiver.script["late"] = [stall(takes=True), status(503), status(503)]
    say(daemon, "late", "x")
    eventually("second try", lambda: len(receiver.of("late")) == 2)
    receiver.release.set()
    found = delivered(daemon, "late")
    receiver.release.clear()
    assert len(receiver.of("late")) == 4
    assert len(found) == 1


def test_seconds_to_wait_are_waited(shared: tuple[RealDaemon, Receiver]) -> None:
    daemon, receiver = shared
    receiver.script["seconds"] = [status(503, retry_after=lambda: "2")]
    say(daemon, "seconds", "x")
    delivered(daemon, "seconds")
    first, second = receiver.of("seconds")
    assert second.at - first.at >= 2
    assert [one["wait"] for one in failures(daemon, "seconds")] == [2000]


def test_a_date_to_wait_for_is_waited_for(shared: tuple[RealDaemon, Receiver]) -> None:
    daemon, receiver = shared
    until: list[int] = []

    def date() -> str:
        until.append(int(time.time()) + 3)
        return format_datetime(datetime.fromtimestamp(until[0], UTC), usegmt=True)

    receiver.script["date"] = [status(429, retry_after=date)]
    say(daemon, "date", "x")
    delivered(daemon, "date")
    first, second = receiver.of("date")
    assert first.at < until[0] <= second.at


def test_back_off_grows_with_jitter_up_to_its_cap(shared: tuple[RealDaemon, Receiver]) -> None:
    daemon, receiver = shared
    receiver.script["backoff"] = [status(500)] * 7
    say(daemon, "backoff", "x")
    delivered(daemon, "backoff")
    waits = [one["wait"] for one in failures(daemon, "backoff")]
    expected = [100, 200, 400, 500, 500, 500, 500]  # the harness: base 0.1 s, at most 0.5 s
    assert len(waits) == len(expected)
    for wait, base in zip(waits, expected, strict=True):
        assert 0.75 * base - 1 <= wait <= 1.25 * base
    factors = {round(wait / base, 2) for wait, base in zip(waits, expected, strict=True)}
    assert len(factors) > 2, "no jitter"
    times = [one.at for one in receiver.of("backoff")]
    for gap, wait in zip([later - sooner for sooner, later in pairwise(times)], waits, strict=True):
        assert gap >= wait / 1000 - 0.005, "sent before its time"


@pytest.mark.parametrize("code", [400, 401, 404, 410, 413, 422, 501, 302])
def test_a_no_for_good_is_a_dead_letter_at_once(shared: tuple[RealDaemon, Receiver], code: int) -> None:
    daemon, receiver = shared
    session = f"no-{code}"
    receiver.script[session] = [status(code)]
    say(daemon, session, "x")
    letter = dead(daemon, session)
    assert (letter["kind"], letter["code"], letter["attempts"]) == ("out", "DELIVERY_PERMANENT", 1)
    assert str(code) in letter["reason"]
    assert len(receiver.of(session)) == 1
    assert [one["status"] for one in receipts(daemon, session)] == ["failed"]
    repair(daemon, "drop", letter["id"], session)
    assert letters(daemon, session) == []


def test_the_agent_is_told_and_not_woken_by_it(shared: tuple[RealDaemon, Receiver]) -> None:
    daemon, receiver = shared
    receiver.script["told"] = [status(404)]
    say(daemon, "told", "x")
    letter = dead(daemon, "told")
    claims = daemon.rows("prog", "told", "SELECT * FROM attempts")
    notice = daemon.rows("prog", "told", "SELECT * FROM messages_in WHERE kind = 'system'")
    assert [(row["id"], row["trigger"], row["status"]) for row in notice] == [
        (f"dead-letter:{letter['id']}", 0, "pending")
    ]
    seen = daemon.ask("context", agent="prog", session="told")["messages"]
    assert [one["kind"] for one in seen] == ["system", "chat"]
    assert seen[0]["content"]["message_out_id"] == letter["id"]
    assert seen[0]["content"]["code"] == "DELIVERY_PERMANENT"
    later = daemon.rows("prog", "told", "SELECT * FROM attempts")
    assert len(later) - len(claims) <= 2, "the notice and the question are one turn, and nothing came in between"


def test_a_stuck_place_holds_back_itself_alone(make_daemon: Make, receiver: Receiver) -> None:
    """One session, two places: what goes to the sound one is delivered while the other one fails and stalls."""
    with misbehaving() as sound:
        daemon = make_daemon(tables(work=receiver.url, sound=sound.url))
        daemon.start()
        receiver.script["s"] = [status(503), stall(), *[status(500)] * 200]
        say(daemon, "s", "a1")
        eventually("tried", lambda: receiver.of("s"))
        say(daemon, "s", "a2")
        eventually("a2 waits behind a1", lambda: len(tracked(daemon, "s")) == 2)
        for number in range(5):  # one by one: what comes together is one turn and has one answer
            say(daemon, "s", f"b{number}", hook="sound")
            eventually("the sound one has it", lambda count=number + 1: len(sound.of("s")) == count)
        assert [one.text for one in sound.of("s")] == [f"b{number}" for number in range(5)]
        assert {one.text for one in receiver.of("s")} == {"a1"}, "a2 went before a1"
        receiver.script["s"].clear()
        delivered(daemon, "s", 7)
        assert [one.text for one in receiver.of("s") if receiver.taken[one.key]][-2:] == ["a1", "a2"]
        assert set(receiver.taken.values()) == {1}
        daemon.at_rest = True


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_attempts_outlive_the_daemon(make_daemon: Make, receiver: Receiver, end: str) -> None:
    """Killed, or stopped, in the middle of the third send; the receiver had acted on it. It is sent again with its key."""
    daemon = make_daemon(tables(patience=FAR_S if end == "kill" else PATIENCE_S, work=receiver.url))
    daemon.start()
    receiver.script["s"] = [status(503), status(503), stall(takes=True), status(503)]
    say(daemon, "s", "x")
    eventually("third send", lambda: len(receiver.of("s")) == 3)
    daemon.kill() if end == "kill" else daemon.stop()
    (row,) = tracked(daemon, "s")
    assert row["attempts"] == 3
    assert row["state"] == ("intended" if end == "kill" else "retrying"), "stopped in order, its time-out is recorded"
    receiver.release.set()
    daemon.start()
    delivered(daemon, "s")
    assert len({one.key for one in receiver.of("s")}) == 1
    assert len(receiver.of("s")) == 5
    assert set(receiver.taken.values()) == {2}, "in doubt: the receiver has the key to tell"
    (event,) = eventually("told", lambda: daemon.events("message_delivered"))
    assert event["attempt"] == 5, "every attempt is a request, and no other is counted"
    daemon.at_rest = True


def test_in_doubt_and_held_until_an_operator_says(make_daemon: Make, receiver: Receiver) -> None:
    daemon = make_daemon(tables('in_doubt = "hold"', FAR_S, work=receiver.url))
    daemon.environment["CLAWBUS_SWEEP__INTERVAL_S"] = "300"  # what is requeued goes at once, not with the next pass
    daemon.start()
    receiver.script["s"] = [stall()]
    say(daemon, "s", "x")
    eventually("sent", lambda: receiver.of("s"))
    daemon.kill()
    daemon.start()
    letter = dead(daemon, "s")
    assert letter["code"] == "IN_DOUBT"
    shown = daemon.cli("dead", "show", letter["id"]).result
    assert "Ask the receiver" in shown["next_step"]
    assert shown["row"]["text"] == "x"
    say(daemon, "s", "y")
    eventually("the next one goes on", lambda: len(receiver.of("s")) == 2)
    assert [one.text for one in receiver.of("s")] == ["x", "y"]

    done = daemon.cli("dead", "requeue", letter["id"], "--reason", "they do not have it").result
    assert done["refused"] == []
    delivered(daemon, "s", 2)
    assert receiver.of("s")[2].key == receiver.of("s")[0].key
    history = daemon.rows("prog", "s", f"SELECT * FROM message_history WHERE message_id = '{letter['id']}'")
    assert [row["event"] for row in history] == ["dead_lettered", "requeued"]
    assert json.loads(history[1]["detail"])["reason"] == "they do not have it"
    assert daemon.cli("dead", "list").result["total"] == 0
    daemon.at_rest = True


def test_given_up_after_its_time_and_not_before(make_daemon: Make, receiver: Receiver) -> None:
    daemon = make_daemon(tables(work=receiver.url))
    daemon.environment["CLAWBUS_DELIVERY__RETRY_FOR_S"] = "3"
    daemon.start()
    receiver.script["s"] = [status(500)] * 100
    said_at = time.time()
    say(daemon, "s", "x")
    letter = dead(daemon, "s")
    requests = receiver.of("s")
    (given_up,) = daemon.rows("prog", "s", "SELECT at FROM message_history WHERE event = 'dead_lettered'")
    assert given_up["at"] / 1000 - said_at >= 3
    assert len(requests) == letter["attempts"] > 3
    assert "gave up after" in letter["reason"]
    count = len(requests)
    receiver.script["s"].clear()
    say(daemon, "s", "y")
    delivered_ = eventually("the next one", lambda: [one for one in receiver.of("s") if one.text == "y"])
    assert len(delivered_) == 1
    assert len([one for one in receiver.of("s") if one.text == "x"]) == count, "a dead letter is not sent"


def test_dead_letters_from_end_to_end(make_daemon: Make, receiver: Receiver) -> None:
    """Both kinds: listed, shown, refused without a daemon, requeued or dropped with one."""
    daemon = make_daemon(tables(work=receiver.url))
    daemon.start()
    receiver.script["s"] = [status(404), status(410)]
    say(daemon, "s", "lost")
    out = dead(daemon, "s")
    failed = daemon.post("exit 3", agent="prog", session="t")
    assert "error" in daemon.answer(failed, agent="prog", session="t")
    listed = eventually("both", lambda: _both(daemon))
    assert {(one["kind"], one["id"], one["code"]) for one in listed} == {
        ("out", out["id"], "DELIVERY_PERMANENT"), ("in", failed, "AGENT_FAILED"),
    }  # fmt: skip
    assert daemon.status()["queues"]["dead_letters"] == 2
    assert failed[-8:] in daemon.people("dead", "list")
    assert daemon.cli("dead", "show", failed[-8:]).result["id"] == failed
    assert "410" not in daemon.people("dead", "show", out["id"])

    daemon.stop()
    assert daemon.cli("dead", "list").result["source"] == "files"
    shown = daemon.cli("dead", "show", out["id"]).result
    assert (shown["source"], shown["row"]["text"], shown["open"]) == ("files", "lost", True)
    assert daemon.cli("dead", "requeue", out["id"]).ok, "also while the daemon is down"
    daemon.start()

    # Mended wrongly: it dies again, and the agent is told again.
    again = eventually("dead again", lambda: _reason(daemon, "410"))
    assert again["id"] == out["id"]
    assert daemon.cli("dead", "requeue", out["id"], failed, "nothing").error == "UNKNOWN_MESSAGE"
    delivered(daemon, "s")
    assert [one.text for one in receiver.of("s")] == ["lost"] * 3
    assert len({one.key for one in receiver.of("s")}) == 1
    notices = daemon.rows("prog", "s", "SELECT id FROM messages_in WHERE kind = 'system' ORDER BY seq")
    assert [row["id"] for row in notices] == [f"dead-letter:{out['id']}", f"dead-letter:{out['id']}+r1"]

    (second,) = eventually("failed again", lambda: letters(daemon, "t"))
    assert second["id"] == f"{failed}+r1"
    assert "error" in daemon.answer(second["id"], agent="prog", session="t")
    assert daemon.cli("dead", "requeue", failed, "--session", "prog/t").error == "NOT_A_DEAD_LETTER"
    assert daemon.cli("dead", "drop", second["id"], "--reason", "it never works").ok
    assert daemon.cli("dead", "list").result["total"] == 0
    assert daemon.status()["queues"]["dead_letters"] == 0
    closed = daemon.cli("dead", "show", second["id"], "--session", "prog/t").result
    assert (closed["open"], closed["closed"]["outcome"], closed["closed"]["reason"]) == (
        False, "dropped", "it never works",
    )  # fmt: skip
    assert [event["event"] for event in closed["history"]][-1] == "dropped"
    assert {event["by"] for event in daemon.events("dead_letter_requeued") + daemon.events("dead_letter_dropped")} == {
        closed["closed"]["by"]
    }
    daemon.at_rest = True


def test_an_answer_whose_row_the_agent_removed_is_refused_and_can_be_dropped(
    make_daemon: Make, receiver: Receiver
) -> None:
    daemon = make_daemon(tables(work=receiver.url))
    daemon.start()
    receiver.script["s"] = [status(404)]
    say(daemon, "s", "x")
    letter = dead(daemon, "s")
    daemon.cli("session", "kill", "prog", "s")
    Path(daemon.folder("prog", "s") / "out" / "outbound.db").unlink()
    assert daemon.cli("dead", "requeue", letter["id"]).error == "ROW_GONE"
    assert dead(daemon, "s")["code"] == "DELIVERY_PERMANENT"
    assert daemon.cli("dead", "drop", letter["id"]).ok
    assert len(receiver.of("s")) == 1
    daemon.hostile = True


def _both(daemon: RealDaemon) -> list[dict[str, Any]] | None:
    found = letters(daemon)
    return found if len(found) == 2 else None


def _reason(daemon: RealDaemon, text: str) -> dict[str, Any] | None:
    return next((one for one in letters(daemon) if text in str(one["reason"])), None)


def picky() -> Fault:
    """500 to what holds the word "poison", 200 to all else."""

    def do(receiver: Receiver, connection: Connection) -> bool:
        wanted = status(500) if b"poison" in receiver.requests[-1].body else ok()
        return wanted.do(receiver, connection)

    return Fault(do)


def test_an_answer_that_is_always_refused_is_named_lets_others_pass_and_can_be_retried_or_dropped(
    make_daemon: Make, receiver: Receiver
) -> None:
    receiver.script["main"] = [picky()] * 500
    daemon = make_daemon(tables("head_blocks_attempts = 4", work=receiver.url))
    daemon.start(environment={"CLAWBUS_DELIVERY__RETRY_MAX_S": "3600"})
    say(daemon, "main", "the poison")
    eventually("the first failure", lambda: failures(daemon, "main"))
    for number in range(3):
        say(daemon, "main", f"fine {number}")
    # Several messages may be one turn, whose answer then has the last one's words.
    eventually("the later ones", lambda: any(b"fine 2" in one.body for one in receiver.of("main")))
    eventually("their receipts", lambda: [one["state"] for one in tracked(daemon, "main")] == ["retrying"])
    texts = [json.loads(one.body)["content"]["text"] for one in receiver.of("main") if b"fine" in one.body]
    assert texts == sorted(texts)
    # It explains itself, everywhere where somebody would look.
    (answer,) = daemon.cli("delivery", "list").result["answers"]
    assert (answer["state"], answer["code"], answer["holds_back"]) == ("retrying", "DELIVERY_TRANSIENT", 0)
    assert answer["attempts"] >= 4
    (found,) = [one for one in daemon.cli("doctor").envelope["result"]["diagnoses"] if one["code"] == "ANSWER_RETRYING"]
    assert "answered 500" in found["evidence"][0]
    assert found["command"].endswith(f" delivery retry {answer['id']} --session prog/main")
    (session,) = daemon.cli("session", "list").result["sessions"]
    assert "answered 500" in session["explanation"]

    # Retried at once, whatever its back-off, until its place is named; then given up, and all is quiet again.
    def place_is_named() -> bool:
        before = len(receiver.of("main"))
        (done,) = daemon.cli("delivery", "retry", answer["id"], "--reason", "a test").result["done"]
        assert done["was"] == "retrying"
        eventually("one more attempt", lambda: len(receiver.of("main")) > before)
        eventually("recorded", lambda: tracked(daemon, "main")[0]["state"] == "retrying")
        return "CHANNEL_FAILING" in [one["code"] for one in daemon.cli("doctor").envelope["result"]["diagnoses"]]

    eventually("five failures in a row", place_is_named, 120)
    assert daemon.cli("dead", "drop", answer["id"]).error == "UNKNOWN_MESSAGE"
    assert daemon.cli("delivery", "drop", answer["id"], "--reason", "never").result["done"][0]["id"] == answer["id"]
    assert daemon.cli("delivery", "list").result["answers"] == []
    assert daemon.cli("delivery", "drop", answer["id"], "--session", "prog/main").error == "ANSWER_NOT_OPEN"
    assert daemon.cli("delivery", "retry", "nothing").error == "UNKNOWN_MESSAGE"
    assert daemon.cli("doctor").result["healthy"]
    history = f"SELECT event FROM message_history WHERE message_id = '{answer['id']}' ORDER BY id"
    events = [row["event"] for row in daemon.rows("prog", "main", history)]
    assert events[-3:] == ["delivery_failed", "dead_lettered", "dropped"]
    assert {"delivery_passed", "delivery_retried"} <= set(events)


def test_a_hook_that_wants_no_answers_leaves_no_dead_letter(make_daemon: Make) -> None:
    hook = '[channels.webhook.hooks.mute]\nagent = "prog"\nsession = "*"\nsecret = "inbound-secret"\nreply = "none"\n'
    daemon = make_daemon(obedient() + CHANNEL.format(port=free_port(), keys="", patience=PATIENCE_S) + hook)
    daemon.start()
    message_id = say(daemon, "main", "to nobody", hook="mute")
    eventually("its end", lambda: [one["status"] for one in receipts(daemon, "main")] == ["not_wanted"])
    assert letters(daemon) == []
    assert daemon.cli("doctor").result["healthy"]
    assert "not_wanted" in daemon.life("prog", "main", message_id)
