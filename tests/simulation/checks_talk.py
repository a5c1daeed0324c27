"""What must hold for all that agents say before their answers, and for the answers that people give to their questions.

Written from docs/write-an-agent.md, docs/agents.md and docs/routing.md. Nothing that an agent was told is stored is lost; no
place gets it more often than one try has said it; an answer belongs to its question, and is a message or an answer, never
both.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from daemon.core.message_verbs import RequeueDead, RetryMessage
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import UndoStale
from tests.simulation.people import Written
from tests.simulation.pruning import Witness
from tests.simulation.scenario import Scenario

Row = dict[str, Any]
# What a person's word means to a question whose options are yes and no.
_MEANS: Final = {"yes": "yes", "YES": "yes", "1": "yes", "no": "no", "2": "no"}


def talk_violations(
    scenario: Scenario, witness: Witness, key: SessionKey, inbound: Mapping[str, Sequence[Row]], outbound: Sequence[Row]
) -> Iterator[str]:
    """Everything that is wrong with one session's talk. `inbound` are inbound.db's rows by table; `outbound` all answers."""
    sent = {row["id"]: row for row in (*outbound, *witness.of(key, "messages_out"))}
    had = [*inbound["messages_in"], *witness.of(key, "messages_in")]
    yield from _kept(scenario, key, sent)
    yield from _once(scenario, key)
    yield from _at_its_place(key, sent, had)
    yield from _told_later(scenario, key, inbound["questions"], had)
    for (owner, identity), written in scenario.people.written.items():
        if owner == key:
            yield from _answer(scenario, key, identity, written, inbound["questions"], had)
    yield from _one_at_a_time(scenario, key, inbound["questions"])


def open_talk(questions: Sequence[Row]) -> str | None:
    """What is still to be answered."""
    for row in questions:
        if row["outcome"] is None:
            return f"{row['id']} is open"
    return None


def _kept(scenario: Scenario, key: SessionKey, sent: Mapping[str, Row]) -> Iterator[str]:
    """None is lost: what the agent was told is stored is a row. That each row arrives, or is buried, is checked of all."""
    for said in scenario.world.talk.said:
        if said.key == key and said.identity not in sent:
            yield f"{key}: {said.identity} ({said.text}) was said, and is nowhere"


def _once(scenario: Scenario, key: SessionKey) -> Iterator[str]:
    """None comes twice: at each place, as many rows say a text as one try of its turn has said it."""
    arrived: dict[tuple[str, str], set[str]] = defaultdict(set)
    for effects in scenario.receivers.effects.values():
        first = effects[0]
        text = json.loads(first.content).get("text")
        if (first.agent, first.session) == key and isinstance(text, str):
            arrived[first.place, text].add(first.message_out_id)
    for (place, text), ids in arrived.items():
        allowed = scenario.world.talk.allowed(key, text)
        if allowed and len(ids) > allowed:
            yield f"{key}: {place!r} got {text!r} {len(ids)} times, as {sorted(ids)}, and it was said {allowed} times"


def _at_its_place(key: SessionKey, sent: Mapping[str, Row], had: Sequence[Row]) -> Iterator[str]:
    """An edit goes where the message is that it edits, and a reaction where the one is that it is about."""
    places: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for row in (*had, *sent.values()):
        places[row["id"]].add(_place(row))
    for row in sent.values():
        fields = json.loads(row["content"])
        for name in ("edits", "reaction_to"):
            about = fields.get(name)
            if about is not None and _place(row) not in places.get(about, set()):
                yield f"{key}: {row['id']} at {_place(row)} {name} {about}, which is at {sorted(places.get(about, ()))}"


def _told_later(scenario: Scenario, key: SessionKey, questions: Sequence[Row], had: Sequence[Row]) -> Iterator[str]:
    """Who does not wait for an answer gets it as a message, once, and it says how the question ended.

    A copy that an operator asked for, because the message had failed, does not count.
    """
    told: dict[str, list[Row]] = defaultdict(list)
    again = scenario.operator.records.ids(key, RequeueDead, RetryMessage)
    for row in had:
        original, copy, _ = row["id"].partition("+r")
        if copy and original in again:
            continue
        fields = json.loads(row["content"]) if row["kind"] == "system" else {}
        if fields.get("type") == "question_answered":
            told[fields["question"]].append(fields)
    undone = bool(scenario.operator.records.of(key, UndoStale))
    for row in questions:
        found = told.pop(row["id"], [])
        if row["outcome"] is None or undone:
            continue
        if len(found) != (1 if row["notify"] else 0):
            yield f"{key}: {row['id']} has ended, and its agent was told {len(found)} times"
        if any((one["status"], one["choice"]) != (row["outcome"], row["choice"]) for one in found):
            yield f"{key}: {row['id']} is {row['outcome']} {row['choice']}, and its agent was told {found}"


def _answer(
    scenario: Scenario, key: SessionKey, identity: str, written: Written, questions: Sequence[Row], had: Sequence[Row]
) -> Iterator[str]:
    """A text is a message or an answer, for good; and it answers what was asked of its writer, at its place, with its word."""
    answers = [one for one in written.accepted if one.seq == 0]
    ended = [row for row in questions if row["answer_id"] == identity]
    stored = [row for row in had if row["id"] == identity]
    text = written.incoming.plain or ""
    pruned = scenario.daemon.config.retention.messages_s > 0
    if (answers or ended) and (stored or len(answers) < len(written.accepted)) and not pruned:
        yield f"{key}: {identity} ({text}) is an answer and a message: {written.accepted}, {ended}, {stored}"
    if not answers and not ended:
        if written.accepted and not stored:
            yield f"{key}: {identity} ({text}) was accepted as a message, and is gone"
        return
    if len(ended) > 1 or (not ended and not pruned):
        yield f"{key}: {identity} ({text}) was taken as an answer, and {len(ended)} questions have it"
    for row in ended:
        asker = scenario.people.senders.get((key, (row["message_id"] or "").partition("+r")[0]))
        if row["asks_for"] is not None:
            yield f"{key}: {identity} of {written.sender} decided {row['id']}, which is for admins"
        if (row["outcome"], row["choice"]) != ("answered", _MEANS.get(text)):
            yield f"{key}: {identity} says {text}, and made {row['id']} {row['outcome']} {row['choice']}"
        address = written.incoming.address
        if address is None or _place(row) != (address.channel_type, address.platform_id, address.thread_id):
            yield f"{key}: {identity} was written at {address}, and answered {row['id']} at {_place(row)}"
        if asker != written.sender:
            yield f"{key}: {identity} of {written.sender} answered {row['id']}, which was asked of {asker}"


def _one_at_a_time(scenario: Scenario, key: SessionKey, questions: Sequence[Row]) -> Iterator[str]:
    """While two questions of one person are open at a place, no plain text answers either: nobody knows which is meant."""
    if scenario.world.counts["clock_jump"]:
        return
    senders = scenario.people.senders
    mine = [(senders.get((key, row["message_id"] or "")), row) for row in questions if row["asks_for"] is None]
    for sender, row in mine:
        if (key, row["answer_id"] or "") not in scenario.people.written:
            continue
        at = row["decided_at"]
        beside = [
            other["id"]
            for owner, other in mine
            if other is not row and owner == sender and _place(other) == _place(row)
            and other["asked_at"] < at < min(other["decided_at"] or at + 1, other["deadline"])
        ]  # fmt: skip
        if beside:
            yield f"{key}: {row['answer_id']} answered {row['id']} while {beside} was open beside it"


def _place(row: Row) -> tuple[Any, ...]:
    return (row["channel_type"], row["platform_id"], row["thread_id"])
