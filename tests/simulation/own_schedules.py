"""The schedules that simulated agents make for themselves, and what must hold of them when all is at rest.

What an agent asks for follows from the message that it works on, so a later try of that message asks the same. The rules are
those of docs/schedules.md and docs/write-an-agent.md: an accepted request is carried out once, each occurrence comes once,
and none is lost but by the catch-up rule.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final

Row = dict[str, Any]

# How many occurrences a schedule of each key has: one has a rhythm, one a single instant.
OCCURRENCES: Final = {"rhythm": 2, "instant": 1}
_SERIES: Final = "schedule:"
_RUNS: Final = "SELECT * FROM schedule_runs"
_CANCELLED: Final = "of the schedule that was cancelled; message "


def request_for(seed: int, message_id: str) -> dict[str, object] | None:
    """What the agent asks for while it works on a message; None for many, and for its own schedules' messages: so all comes to rest."""
    rng = Random(f"schedules {seed} {message_id}")
    if message_id.startswith(_SERIES) or rng.random() >= 0.4:
        return None
    key = rng.choice(tuple(OCCURRENCES))
    if rng.random() < 0.3:
        return {"type": "change_schedule", "key": key, "action": rng.choice(("pause", "resume", "cancel", "run_now"))}
    rule: dict[str, object] = {"every_s": rng.choice((1, 4, 120)), "count": OCCURRENCES[key]}
    if key == "instant":
        rule = {"at": f"in {rng.choice((1, 10, 200))}s"}
    catch_up = rng.choice(("skip", "latest", "all"))
    # The text says which message asked, so that the checks can tell one request from another.
    return {
        "type": "schedule",
        "key": key,
        "text": message_id,
        "catch_up": catch_up,
        "notify": rng.random() < 0.5,
        **rule,
    }


def still_active(inbound: Callable[[str], Sequence[Any]]) -> str | None:
    """Why the session's schedules are not at rest, or None."""
    active = [(row["key"], row["next_at"]) for row in inbound("SELECT * FROM schedules WHERE state = 'active'")]
    return f"scheduled: {active}" if active else None


def broken(
    inbound: Callable[[str], Sequence[Row]],
    outbound: Sequence[Row],
    gone: Sequence[Row],
    kept: Sequence[Row],
    records_gone: tuple[Sequence[Row], Sequence[Row]],
) -> Iterator[str]:
    """What is wrong with a session's schedules.

    `inbound` runs SQL on its inbound.db. `outbound`: every row that its containers wrote, also those that are pruned. `gone`:
    messages that retention took; `kept`: those that are there. `records_gone`: what it took of the schedules' runs, and of the
    session's own history.
    """
    runs_gone, history_gone = records_gone
    sent: defaultdict[str, list[str]] = defaultdict(list)
    runs = {(row["key"], row["due"]): _message_of(row) for row in (*runs_gone, *inbound(_RUNS))}
    for (key, _), message_id in runs.items():
        if message_id is not None:
            sent[key].append(message_id)
    # A deletion that a crash took back is seen twice, and its row is still there.
    stored = {(str(row["id"]), int(row["seq"])) for row in (*gone, *kept)}
    messages = Counter(identity for identity, _ in stored if identity.startswith(_SERIES))
    history = (*history_gone, *inbound("SELECT * FROM message_history WHERE message_id = '@session' ORDER BY id"))
    told = _told(list({(row["id"], row["at"]): row for row in history}.values()))
    yield from _occurrences(sent, messages)
    lives = Counter(identity for identity, _ in stored)
    yield from _requests(told, outbound, lives, inbound)
    for key, occurrences in OCCURRENCES.items():
        events = told[key]
        most = occurrences * events.count("schedule_set") + events.count("schedule_run")
        if len(sent[key]) > most:
            yield f"schedule {key} has sent {len(sent[key])} messages, and {most} were asked for ({events})"
    for row in inbound("SELECT * FROM schedules WHERE state = 'over'"):
        yield from _lost(row, told[row["key"]], inbound)


def _told(history: Sequence[Row]) -> defaultdict[str, list[str]]:
    """What was changed of each schedule, in order."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in history:
        key = json.loads(row["detail"] or "{}").get("schedule")
        if key is not None:
            found[key].append(row["event"])
    return found


def _message_of(run: Row) -> str | None:
    """The message of an occurrence on record. Of a schedule that was cancelled, the words alone say it."""
    _, of_cancelled, message_id = (run["detail"] or "").partition(_CANCELLED)
    return message_id if of_cancelled else run["message_id"]


def _occurrences(sent: dict[str, list[str]], messages: Counter[str]) -> Iterator[str]:
    """Each occurrence on record is one message, and each message one occurrence."""
    recorded = Counter(message_id for ids in sent.values() for message_id in ids)
    for identity in recorded.keys() | {one for one in messages if "+r" not in one}:
        if recorded[identity] != 1 or messages[identity] != 1:
            yield f"{identity} is on record {recorded[identity]} times, and {messages[identity]} messages have its id"


def _requests(
    told: dict[str, list[str]],
    outbound: Sequence[Row],
    lives: Counter[str],
    inbound: Callable[[str], Sequence[Row]],
) -> Iterator[str]:
    """A request that the host took note of has an outcome, and each message's was carried out once.

    `lives`: how often a message was accepted under each id; retention may have taken one before it was sent again.
    """
    asked: defaultdict[str, set[str]] = defaultdict(set)
    noted = {row["id"] for row in inbound("SELECT message_out_id AS id FROM delivered WHERE status = 'carried_out'")}
    outcomes = {row["id"] for row in inbound("SELECT id FROM schedule_requests")}
    for row in outbound:
        fields = json.loads(row["content"])
        if row["kind"] != "system" or fields.get("type") not in ("schedule", "change_schedule"):
            continue
        if fields["type"] == "schedule":
            asked[fields["key"]].add(fields["text"])
        if row["id"] in noted and row["id"] not in outcomes:
            yield f"the request {row['id']} counts as carried out, and has no outcome"
    for key, events in told.items():
        most = sum(max(1, lives[identity]) for identity in asked[key])
        if events.count("schedule_set") > most:
            yield f"schedule {key} was set {events.count('schedule_set')} times, and {most} messages asked for it"


def _lost(row: Row, events: Sequence[str], inbound: Callable[[str], Sequence[Row]]) -> Iterator[str]:
    """A schedule that nobody changed since it was made has sent all its occurrences, but for one that was missed by rule."""
    made = len(events) - 1 - events[::-1].index("schedule_set")
    if any(event != "schedule_run" for event in events[made + 1 :]):
        return
    times, wanted = json.loads(row["times"]), OCCURRENCES[row["key"]]
    missed = inbound(f"SELECT detail FROM schedule_runs WHERE key = '{row['key']}' AND detail LIKE 'missed%'")
    may_be_missed = times["catch_up"] == "skip" and row["key"] == "instant" and bool(missed)
    if row["sent"] != wanted and not may_be_missed:
        yield f"schedule {row['key']} is over and has sent {row['sent']} of {wanted} ({times})"
