"""What must hold after a run has healed, from the clients' and the receivers' side; files are tests.support.invariants'.

Written from docs/contract.md and docs/reliability.md, not from the product: no function that decides anything in the bus
is asked what it should have decided (`tests/unit/test_oracles.py` holds that). What the operator asked for is excused, by
the operator's own records, and nothing else is. Every message is completed or failed with a reason, every outbound row has one receipt or dead letter, effects are at most
one a key but for declared exceptions, tries are no more than claims, and order per destination held.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from container_runner.providers.protocol import TurnMessage
from container_runner.store import Store
from daemon.channels.protocol import Accepted, InDoubt
from daemon.core.message_verbs import CancelMessage, RequeueDead, RetryAnswer, RetryMessage
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import UndoStale
from daemon.store.data_layout import Layout
from schema.connect import open_reader
from schema.errors import ClawbusError
from schema.handles import Reader, Writer
from schema.layout import SessionFolder
from tests.simulation.bus import SimDaemon, session_root
from tests.simulation.checks_talk import open_talk, talk_violations
from tests.simulation.operators import Records
from tests.simulation.own_schedules import broken, still_active
from tests.simulation.pruning import Witness
from tests.simulation.receivers import TRAITS, Receivers
from tests.simulation.scenario import Ledger, Scenario
from tests.simulation.world import World
from tests.support.invariants import data_folder_violations
from tests.support.invariants_session import epoch_ms, messages_due, sends_due

_OVER: Final = ("completed", "failed")
LATE_LOOKS: Final = (
    30  # five seconds apart: longer than any sweep's interval of a run, and shorter than most full passes
)


@dataclass
class Claims:
    """Which incarnation claimed which message, by the runner's own commits."""

    pairs: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])  # session, message, incarnation

    alone: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])  # session, message: had a turn of its own

    def note(self, world: World, store: Store, db: Writer, session: str, batch: Sequence[TurnMessage]) -> None:
        """Look at a claim as it is committed: who shares the turn, and whom it overtakes."""
        triggers = [message for message in batch if message.trigger]
        held = "SELECT count(*) AS n FROM main.processing_ack AS a JOIN inbound.messages_in AS m ON m.id = a.message_id"
        row = db.one(
            f"{held} WHERE a.status = 'processing' AND a.incarnation = ? AND m.trigger = 1", (store._incarnation,)
        )
        beside = (row["n"] if row is not None else 0) + len(triggers) - 1
        if not beside:
            self.alone.add((session, triggers[0].id))
        for message in triggers:
            found = db.one("SELECT status, tries, solo FROM inbound.messages_in WHERE id = ?", (message.id,))
            if beside and found is not None and (found["tries"] or found["solo"]):
                world.broken(f"{session}: {message.id} is tried again in one turn with {beside} others")
            if found is None or found["status"] != "pending":
                world.broken(f"{session}: {message.id} is claimed, and is {found and found['status']}")
        if world.counts["clock_jump"]:
            return  # what was due at the look may not be any more
        waiting = db.all(
            "SELECT id, seq, process_after FROM inbound.messages_in WHERE status = 'pending' AND trigger = 1"
            " AND on_wake = 0 AND holds = 1"
        )
        for row in waiting:
            after = epoch_ms(row["process_after"])
            if after is not None and after > store.now_ms() and any(one.seq > row["seq"] for one in batch):
                world.broken(
                    f"{session}: {[one.id for one in batch]} overtake {row['id']}, which waits for its next try"
                )

    def of(self, session: str, message: str) -> int:
        """How many incarnations claimed a message."""
        return sum(1 for pair in self.pairs if pair[:2] == (session, message))


def unrest(scenario: Scenario) -> str | None:
    """What still has to happen, or None when the bus is at rest."""
    if scenario.ledger.waiting or scenario.people.waiting:
        return f"{scenario.ledger.waiting} clients and {scenario.people.waiting} people wait for a yes"
    if not scenario.daemon.ready:
        return "no daemon serves"
    if scenario.host.running():
        return f"containers run: {', '.join(item.id for item in scenario.host.running())}"
    bus = scenario.daemon.bus
    assert bus is not None
    if bus.supervisor.slots() or bus.supervisor.waiting():
        return "the supervisor is at work"
    if bus.delivery.senders or bus.delivery._dirty:
        return "delivery is at work"
    for key in scenario.sessions:
        try:
            _punctual(scenario, key)
            why = _session_unrest(scenario.daemon, key)
        except ClawbusError as error:  # a killed command left a journal that the next writer rolls back
            why = str(error)
        if why is not None:
            return f"{key}: {why}"
    return None


def _punctual(scenario: Scenario, key: SessionKey) -> None:
    """While everything works, no occurrence stays due for long, also where nothing else happens in its session.

    While the daemon doubts the clock, none fires.
    """
    now = scenario.world.clock.now_ms()
    due = _rows(scenario.daemon, key, f"SELECT key FROM schedules WHERE state = 'active' AND next_at < {now}")
    bus = scenario.daemon.bus
    held = scenario.operator.quarantine_reason(key) is not None or (bus is not None and bus.awake.doubts())
    scenario.late[key] = scenario.late[key] + 1 if due and not held else 0
    if scenario.late[key] > LATE_LOOKS:
        scenario.world.broken(f"{key}: the schedules {[row['key'] for row in due]} are due, and do not fire")


def _session_unrest(daemon: SimDaemon, key: SessionKey) -> str | None:
    folder = SessionFolder(session_root(daemon.layout, key))
    if not folder.inbound_db.exists():
        return None
    now = daemon.world.clock.now_ms()
    try:
        with open_reader(daemon.layout.central_db) as db:
            row = db.one(
                "SELECT active, next_due_at, quarantine_reason FROM sessions WHERE agent = ? AND session = ?", key
            )
        with open_reader(folder.inbound_db) as db:
            pending = db.all(
                "SELECT id, process_after FROM messages_in WHERE status = 'pending' AND trigger = 1"
                " AND coalesce(julianday(process_after), 0) <= julianday('now', ?)",
                (f"{(now - _real_now()) / 1000 + 30 * 86400:.3f} seconds",),
            )
            scheduled = still_active(db.all)
            open_rows = db.all("SELECT message_out_id, state FROM delivery_attempts WHERE state <> 'dead'")
            questions = [dict(one) for one in db.all("SELECT * FROM questions")]
    except ClawbusError as error:
        return f"unreadable: {error}"
    if row is not None and row["quarantine_reason"]:
        return f"in quarantine: {row['quarantine_reason']}"
    if pending:
        return f"pending: {[tuple(item) for item in pending]}"
    if open_rows:
        return f"to be delivered: {[tuple(item) for item in open_rows]}"
    if row is not None and row["active"]:
        return "active"
    return scheduled or open_talk(questions)


def _real_now() -> int:
    import time  # noqa: PLC0415

    return time.time_ns() // 1_000_000


def violations(scenario: Scenario, claims: Claims, witness: Witness) -> Iterator[str]:
    """Everything that is wrong with a run at rest."""
    asked = scenario.operator.records
    pruned = bool(witness.rows) or scenario.daemon.config.retention.incarnations_s > 0
    yield from data_folder_violations(scenario.world.root, at_rest=True, pruned=pruned)
    for key in scenario.sessions:
        yield from _messages(scenario.daemon, scenario.ledger, claims, witness, asked, key)
        yield from _operated(scenario.daemon, witness, asked, key)
        yield from _answers(scenario.daemon, witness, key)
        yield from _receipts(scenario.daemon, scenario.receivers, key)
        yield from _declared(scenario.daemon, scenario.receivers, key)
        yield from _gone(scenario.daemon, witness, key)
        yield from _questions(scenario, key)
        yield from _schedules(scenario.daemon, witness, key)
        inbound = {
            table: _rows(scenario.daemon, key, f"SELECT * FROM {table}") for table in ("messages_in", "questions")
        }
        outbound = _rows(scenario.daemon, key, "SELECT * FROM messages_out", outbound=True)
        yield from talk_violations(scenario, witness, key, inbound, outbound)
    yield from _effects(scenario.receivers, asked)
    yield from _order(scenario.daemon, scenario.receivers, witness, asked, scenario.sessions)


def forgotten(layout: Layout, keys: Sequence[SessionKey], now: int) -> Iterator[str]:
    """What a daemon that dies now would leave behind unseen: central.db must point at every session with work."""
    for key in keys:
        folder = SessionFolder(session_root(layout, key))
        try:
            with open_reader(layout.central_db) as db:
                row = db.one(
                    "SELECT active, next_due_at, quarantined_at FROM sessions WHERE (agent, session) = (?, ?)", key
                )
            with open_reader(folder.inbound_db) as db:
                soonest = min(_work(db), default=None)
        except ClawbusError:
            continue  # a journal is left, or there is no file yet: not now
        if row is None or row["active"] or row["quarantined_at"] is not None:
            continue
        if row["next_due_at"] is not None and row["next_due_at"] <= now:
            continue
        if soonest is not None and (row["next_due_at"] is None or soonest < row["next_due_at"]):
            yield f"{key}: there is work at {soonest}, and central.db has the session idle until {row['next_due_at']}"


def _work(db: Reader) -> Iterator[int]:
    """When each thing that waits in inbound.db has to be looked at: epoch ms, 0 for now."""
    pending = [dict(row) for row in db.all("SELECT * FROM messages_in WHERE status = 'pending' AND trigger = 1")]
    tracked = [dict(row) for row in db.all("SELECT * FROM delivery_attempts WHERE state <> 'dead'")]
    yield from (due for _, due in (*messages_due(pending), *sends_due(tracked)))
    yield from (row["next_at"] for row in db.all("SELECT next_at FROM schedules WHERE state = 'active'"))


def _operated(daemon: SimDaemon, witness: Witness, asked: Records, key: SessionKey) -> Iterator[str]:
    """What the operator was told is done: a requeue or retry is a message that is there, and a reset lost no answer."""
    rows = {row["id"]: row for row in _rows(daemon, key, "SELECT id, status, trigger FROM messages_in")}
    gone = {row["id"] for row in witness.of(key, "messages_in")}
    undone = any(one.result for one in asked.of(key, UndoStale))
    for one in asked.of(key, RequeueDead, RetryMessage):
        result = one.result or {}
        again = result.get("requeued_as" if result.get("kind") == "in" else "retried_as")
        if again is None or again in gone or (undone and again not in rows):
            continue
        if again not in rows:
            yield f"{key}: {result} was answered, and {again} is not there"
        elif rows[again]["trigger"] and rows[again]["status"] not in (*_OVER, "cancelled"):
            yield f"{key}: {result} was answered, and {again} is {rows[again]['status']} in the end"
    for one in asked.of(key, CancelMessage):
        # An id that retention took may be sent again: that is another message.
        row = rows.get(one.id) if one.id not in gone else None
        if one.result and not undone and row is not None and row["status"] != "cancelled":
            yield f"{key}: {one.id} was cancelled by the answer, and is {rows[one.id]['status']}"
    for message_id, row in rows.items():
        if row["status"] == "cancelled" and not asked.may_be_cancelled(key, message_id):
            yield f"{key}: {message_id} is cancelled, and nobody asked for that"
    yield from _put_aside(daemon, witness, key)


def _put_aside(daemon: SimDaemon, witness: Witness, key: SessionKey) -> Iterator[str]:
    """A reset without --discard puts no answer aside that the host has not taken note of, or has not delivered."""
    gone = _rows(daemon, key, "SELECT message_out_id AS id FROM delivery_attempts WHERE last_error_code = 'ROW_GONE'")
    lost = {row["id"] for row in gone}
    known = {row["id"] for row in _rows(daemon, key, "SELECT message_out_id AS id FROM delivered")}
    known |= {row["id"] for row in _rows(daemon, key, "SELECT message_out_id AS id FROM delivery_attempts")}
    known |= {row["id"] for row in _rows(daemon, key, "SELECT id FROM dead_letters_closed")}
    known |= witness.receipts.get(key, set())
    for path in sorted(session_root(daemon.layout, key).glob("out.reset-*/outbound.db")):
        for row in _rows_of(path, "SELECT id FROM messages_out"):
            if row["id"] not in known:
                yield f"{key}: {row['id']} was put aside by a reset, and nobody had taken note of it"
            if row["id"] in lost:
                yield f"{key}: {row['id']} was put aside by a reset, and had not been delivered"


def _answers(daemon: SimDaemon, witness: Witness, key: SessionKey) -> Iterator[str]:
    """Nothing is marked done that was not: a completed message was seen by an answer."""
    seen: set[str] = set()
    outbound = _rows(daemon, key, "SELECT content FROM messages_out", outbound=True)
    for row in (*outbound, *witness.of(key, "messages_out")):
        seen.update(json.loads(row["content"]).get("seen", ()))
    completed = _rows(daemon, key, "SELECT id FROM messages_in WHERE status = 'completed'")
    completed += [row for row in witness.of(key, "messages_in") if row["status"] == "completed"]
    for row in completed:
        if row["id"] not in seen:
            yield f"{key}: {row['id']} is completed, and no answer has seen it"


def _questions(scenario: Scenario, key: SessionKey) -> Iterator[str]:
    """Each question was decided at most once, none is left open, and a turn that got an answer got the recorded one."""
    rows = {row["id"]: row for row in _rows(scenario.daemon, key, "SELECT * FROM questions")}
    told: Counter[str] = Counter()
    for row in _rows(scenario.daemon, key, "SELECT detail FROM message_history WHERE event = 'question_decided'"):
        told[json.loads(row["detail"])["question"]] += 1
    for identity, row in rows.items():
        if row["outcome"] is None:
            yield f"{key}: {identity} is open in the end"
        if told[identity] > 1:
            yield f"{key}: {identity} was decided {told[identity]} times"
    for agent, session, identity, decision in scenario.world.decisions:
        row = rows.get(identity)
        if (agent, session) != key or row is None:
            continue
        # A runner that waited past the deadline stops by itself; the host may have cancelled the question meanwhile.
        ends = {row["outcome"]} if row["outcome"] != "cancelled" else {"cancelled", "timeout"}
        if decision.outcome.value not in ends or row["choice"] != decision.choice:
            yield f"{key}: {identity} is {row['outcome']} {row['choice']}, and a turn was told {decision}"


def _schedules(daemon: SimDaemon, witness: Witness, key: SessionKey) -> Iterator[str]:
    """What an agent scheduled for itself: see own_schedules."""
    outbound = _rows(daemon, key, "SELECT id, kind, content FROM messages_out", outbound=True)
    written = [*outbound, *witness.of(key, "messages_out")]
    kept = _rows(daemon, key, "SELECT id, seq FROM messages_in")
    records_gone = witness.of(key, "schedule_runs"), witness.of(key, "message_history")
    for text in broken(
        lambda sql: _rows(daemon, key, sql), written, witness.of(key, "messages_in"), kept, records_gone
    ):
        yield f"{key}: {text}"


def _gone(daemon: SimDaemon, witness: Witness, key: SessionKey) -> Iterator[str]:
    """What is deleted stays deleted, and no seq is used again."""
    here = _rows(daemon, key, "SELECT id, seq FROM messages_in UNION SELECT id, seq FROM host_messages")
    here += _rows(daemon, key, "SELECT id, seq FROM messages_out", outbound=True)
    gone = [*witness.of(key, "messages_in"), *witness.of(key, "messages_out")]
    used: dict[int, str] = {}
    for row in (*gone, *here):
        if used.setdefault(row["seq"], row["id"]) != row["id"]:
            yield f"{key}: seq {row['seq']} was {used[row['seq']]}'s and is {row['id']}'s"


def _rows(daemon: SimDaemon, key: SessionKey, sql: str, *, outbound: bool = False) -> list[dict[str, Any]]:
    """The rows of one of the two files; of the container's, with those that resets have put aside."""
    root = session_root(daemon.layout, key)
    folder = SessionFolder(root)
    paths = [*sorted(root.glob("out.reset-*/outbound.db")), folder.outbound_db] if outbound else [folder.inbound_db]
    return [row for path in paths for row in _rows_of(path, sql)]


def _rows_of(path: Path, sql: str) -> list[dict[str, Any]]:
    if not path.exists() or not path.stat().st_size:
        return []
    with open_reader(path) as db:
        return [dict(row) for row in db.all(sql)] if db.all("SELECT 1 FROM sqlite_schema LIMIT 1") else []


def _messages(
    daemon: SimDaemon, ledger: Ledger, claims: Claims, witness: Witness, asked: Records, key: SessionKey
) -> Iterator[str]:
    rows = {row["id"]: row for row in _rows(daemon, key, "SELECT * FROM messages_in")}
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(daemon, key, "SELECT * FROM message_history ORDER BY id"):
        told[row["message_id"]].append(row)
    for (owner, sent_as), accepted in ledger.accepted.items():
        if owner == key:
            for one in accepted:
                yield from _kept(key, sent_as, one, rows, witness, asked)
    for message_id, row in rows.items():
        retries = [item for item in told[message_id] if item["event"] == "retry_scheduled"]
        charged = Counter(item["incarnation"] for item in retries)
        if any(count > 1 for count in charged.values()):
            yield f"{key}: {message_id} was charged twice for one incarnation: {dict(charged)}"
        known = claims.of(key.session, message_id)
        if (row["tries"] or 0) > known:
            yield f"{key}: {message_id} has lost {row['tries']} tries, and {known} incarnations claimed it"
        for item in retries:
            if (key.session, message_id, item["incarnation"]) not in claims.pairs:
                yield f"{key}: {message_id} lost a try to {item['incarnation']}, which never claimed it"
        if row["status"] == "failed" and row["trigger"] and (key.session, message_id) not in claims.alone:
            yield f"{key}: {message_id} has failed, and never had a turn of its own"
        failed = [item for item in told[message_id] if item["event"] == "failed"]
        if row["status"] == "failed" and not (failed and "reason" in json.loads(failed[-1]["detail"] or "{}")):
            yield f"{key}: {message_id} failed without a reason"
        if [item["event"] for item in told[message_id]].count("accepted") > 1:
            yield f"{key}: {message_id} was accepted twice"


def _kept(
    key: SessionKey,
    message_id: str,
    accepted: Accepted,
    rows: dict[str, dict[str, Any]],
    witness: Witness,
    asked: Records,
) -> Iterator[str]:
    """What one yes said is true of a row that is there, or that was there until retention took it.

    A client that sends an id again after retention took the message makes a new one: each yes is held to its own row.
    """
    if accepted.message_id != message_id:
        yield f"{key}: {message_id} was sent, and {accepted.message_id} was accepted"

    def called(identity: str) -> list[dict[str, Any]]:
        there = [one for one in witness.of(key, "messages_in") if one["id"] == identity]
        return [*there, rows[identity]] if identity in rows else there

    def cancelled(row: dict[str, Any]) -> bool:
        return row["status"] == "cancelled" and asked.may_be_cancelled(key, row["id"])

    known = called(message_id)
    meant = [row for row in known if row["seq"] == accepted.seq]
    if not known:
        yield f"{key}: {message_id} was accepted, and is gone"
    elif not meant:
        yield f"{key}: {message_id} was accepted as {accepted.seq}, and is {' and '.join(str(row['seq']) for row in known)}"
    work = meant
    if accepted.requeued_as is not None:
        work = called(accepted.requeued_as)
        if not work:
            yield f"{key}: {message_id} was requeued as {accepted.requeued_as}, which is gone"
        if any(row["content"] != one["content"] for row in meant for one in work):
            yield f"{key}: {message_id} was requeued as {accepted.requeued_as}, which says something else"
        if any(row["status"] != "failed" and not cancelled(row) for row in meant):
            yield f"{key}: {message_id} was requeued, and neither failed nor was cancelled"
    for row in work:
        if row["trigger"] and row["status"] not in _OVER and not cancelled(row):
            yield f"{key}: {message_id} was accepted, and {row['id']} is {row['status']} in the end"


def _effects(receivers: Receivers, asked: Records) -> Iterator[str]:
    """At most one effect a key, but where nobody could know: a failure reported after the effect, or a daemon that died
    between send and receipt on a channel whose policy is to send again. An operator who requeues a dead letter, or retries
    an answer that is in doubt, sends it once more for each time."""
    for key, effects in receivers.effects.items():
        traits = TRAITS[effects[0].place.split("\x1f")[0]]
        first = effects[0]
        session = SessionKey(first.agent, first.session)
        again = sum(one.id == first.message_out_id for one in asked.of(session, RequeueDead, RetryAnswer))
        for before, after in pairwise(effects):
            in_doubt = before.by != after.by and traits.in_doubt is InDoubt.RESEND
            if not traits.deduplicates and again and not (before.ambiguous or in_doubt):
                again -= 1
            elif traits.deduplicates or not (before.ambiguous or in_doubt):
                yield f"{key} had an effect at {before.at:.4f} by {before.by}, and again at {after.at:.4f} by {after.by}"


def _declared(daemon: SimDaemon, receivers: Receivers, key: SessionKey) -> Iterator[str]:
    """What a later attempt did once more is in the history as in doubt; of what retention took the history is gone too."""
    known = {row["id"] for row in _rows(daemon, key, "SELECT message_out_id AS id FROM delivered")}
    told: Counter[str] = Counter()
    for row in _rows(daemon, key, "SELECT message_id, event, detail FROM message_history"):
        doubt = row["event"] == "delivery_failed" and json.loads(row["detail"] or "{}").get("in_doubt")
        told[row["message_id"]] += bool(doubt) or row["event"] == "delivery_in_doubt"
    for effects in receivers.effects.values():
        first = effects[0]
        again = len({effect.attempt for effect in effects}) - 1
        if (first.agent, first.session) == key and first.message_out_id in known and told[first.message_out_id] < again:
            yield f"{key}: {first.message_out_id} was sent {again} times more, and that is declared nowhere"


def _receipts(daemon: SimDaemon, receivers: Receivers, key: SessionKey) -> Iterator[str]:
    """A receipt is proof: no delivery is recorded that no receiver saw."""
    for row in _rows(daemon, key, "SELECT * FROM delivered WHERE status = 'delivered'"):
        if not receivers.effects.get(f"{key}/{row['message_out_id']}"):
            yield f"{key}: {row['message_out_id']} has a receipt, and no receiver ever saw it"


def _order(
    daemon: SimDaemon, receivers: Receivers, witness: Witness, asked: Records, sessions: Sequence[SessionKey]
) -> Iterator[str]:
    """First effects of one session at one destination come in seq order; rows with a time of their own aside, and those
    that an operator requeued: what stood behind them has gone on."""
    for key in sessions:
        rows = _rows(daemon, key, "SELECT id, seq, deliver_after FROM messages_out", outbound=True)
        rows += witness.of(key, "messages_out")
        passed = _passed(daemon, key) | asked.ids(key, RequeueDead)
        passed |= {row["id"] for row in witness.of(key, "messages_out") if row["passed"]}
        timely = [row for row in rows if row["deliver_after"] is None and row["id"] not in passed]
        # After a reset a turn may write the same row again, with a later seq: it was sent by its first.
        seqs = {row["id"]: row["seq"] for row in sorted(timely, key=lambda row: -row["seq"])}
        last: dict[str, int] = {}
        firsts = [effects[0] for effects in receivers.effects.values() if effects]
        for effect in sorted(firsts, key=lambda item: item.at):
            if (effect.agent, effect.session) != key or effect.message_out_id not in seqs:
                continue
            seq = seqs[effect.message_out_id]
            if seq < last.get(effect.place, 0):
                yield f"{key}: seq {seq} reached {effect.place!r} after seq {last[effect.place]}"
            last[effect.place] = max(seq, last.get(effect.place, 0))


def _passed(daemon: SimDaemon, key: SessionKey) -> set[str]:
    """Answers that kept failing, and let later ones pass by the rule of `delivery.head_blocks_*`."""
    history = _rows(daemon, key, "SELECT message_id, event, detail FROM message_history")
    return {
        row["message_id"]
        for row in history
        if row["event"] == "delivery_passed" or "waits_behind" in json.loads(row["detail"] or "{}")
    }
