"""What is written to a session's files when one of its containers ends, or is asked to: settle, release, drain.

Synchronous; the caller holds the session's lock. No container is started or stopped here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from daemon.core.attempt_end import AttemptEnd
from daemon.core.lifecycle import (
    CEILING,
    CLAIM_OVERDUE,
    CLAIM_STUCK,
    Action,
    reset_orphans,
    settled,
)
from daemon.core.message_fate import Verdict, Void, claimed_by
from daemon.engine.endings import endings
from daemon.engine.fate_steps import apply_verdict, judge, judge_suspects
from daemon.engine.settle_steps import turns_begun
from daemon.engine.sweep_steps import Settings, apply, observe
from daemon.store import messages
from daemon.store.draining import is_draining, note_draining
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import record
from daemon.store.turn_usage import usage_of
from schema.ids import time_of
from schema.rows import Ack, AckStatus, TurnUsage

FORCED: Final = frozenset({CEILING, CLAIM_STUCK, CLAIM_OVERDUE, "unreadable"})


class Finished(NamedTuple):
    """The result of settling a confirmed exit. `claimed`: whether the incarnation had claimed anything.

    `begun`: the turns that the host had not seen before. `stopped`: what the turns of cancelled messages used.
    """

    claimed: bool
    actions: list[Action]
    endings: tuple[AttemptEnd, ...]
    verdicts: tuple[Verdict, ...] = ()
    begun: int = 0
    stopped: tuple[tuple[str, TurnUsage], ...] = ()


def finish_incarnation(files: SessionFiles, incarnation: str, reason: str, now: int, settings: Settings) -> Finished:
    """Settle a CONFIRMED exit in the files: recover the journal, settle acks, reset claims. Safe to repeat.

    A claim that the runner released costs no try, unless the host had to force the container to end.
    """
    files.recover()
    with files.inbound() as db:
        with files.outbound() as out:
            raw = observe(db, out, now)
            # Count only acks that are proven to belong to their message; the next sweep judges the others.
            _, good = judge_suspects(db, out, raw.pending, raw.acks, floor=0)
            stopped = [
                (item.message_id, usage)
                for item in messages.open_attempts(db)
                if item.incarnation == incarnation
                and (usage := usage_of(out, item.message_id, incarnation)) is not None
            ]
        judged = judge(db, raw.pending, raw.acks, settings.fate, now)
        seen = replace(raw, pending=judged.pending, acks={**judged.acks, **good})
        born = time_of(incarnation)
        own = tuple(replace(c, incarnation=incarnation) for c in seen.claims if claimed_by(c, incarnation, born))
        open_ids = [item.message_id for item in messages.open_attempts(db) if item.incarnation == incarnation]
        had_any = messages.ever_claimed(db, incarnation) or bool(own)
        claimed = {claim.message_id for claim in own}
        begun = int(bool(claimed - set(open_ids)) and not open_ids)
        put_off = {verdict.message_id for verdict in judged.verdicts if not isinstance(verdict, Void)}
        open_ids = [message_id for message_id in open_ids if message_id not in put_off]
        if reason in FORCED:
            own += tuple(_forced(message_id, incarnation) for message_id in open_ids if message_id not in claimed)
            claimed.update(open_ids)
        seen = replace(seen, claims=own)
        settles = settled(seen)
        finished = {item.message_id for item in settles}
        orphans = [item for item in reset_orphans(seen, settings.policy) if item.message_id not in finished]
        actions: list[Action] = [*settles, *orphans]
        begun += turns_begun(db, settles, seen.acks)
        with db.transaction():
            for claim in own:
                messages.note_claim(db, claim.message_id, incarnation, claim.changed_at or now, now)
            for verdict in judged.verdicts:
                apply_verdict(db, verdict, settings.fate, now)
            for action in actions:
                apply(db, action, now, settings.fate)
            for message_id in set(open_ids) - claimed - finished:
                record(db, message_id, "released", now, incarnation=incarnation, detail={"reason": reason})
                messages.end_attempt(db, message_id, incarnation, now, "released")
        ended = endings(db, seen.pending, seen.acks, actions, now)
    used = tuple(one for one in stopped if one[0] not in finished)
    return Finished(had_any or bool(settles) or bool(put_off), actions, ended, judged.verdicts, begun, used)


def disown_incarnation(files: SessionFiles, incarnation: str, now: int) -> int:
    """Release, without charging a try, what another installation's container had claimed when this folder was copied.

    Return the number of released messages. None of our containers may have written to these files.
    """
    files.recover()
    with files.inbound() as db:
        with files.outbound() as out:
            seen = observe(db, out, now)
        held = {claim.message_id for claim in seen.claims if claim.incarnation == incarnation}
        held |= {item.message_id for item in messages.open_attempts(db) if item.incarnation == incarnation}
        held -= {item.message_id for item in settled(seen)}
        with db.transaction():
            for message_id in sorted(held):
                messages.note_claim(db, message_id, incarnation, now, now)
                if messages.end_attempt(db, message_id, incarnation, now, "released"):
                    record(db, message_id, "released", now, incarnation=incarnation, detail={"reason": "copied"})
    return len(held)


def drain(files: SessionFiles, incarnation: str, now: int) -> bool:
    """Ask this incarnation, in inbound.db, to stop claiming. Return whether it works on nothing.

    After the commit our runner makes no further claim, so "works on nothing" stays true. A runner that ignores the request
    may still claim; it then gets the usual grace before it is stopped.
    """
    with files.inbound() as db:
        if not is_draining(db, incarnation):
            with db.transaction():
                note_draining(db, incarnation, now, forced=False)
        with files.outbound() as out:
            seen = observe(db, out, now)
        # An open claim counts as work even if the turn is finished: its commit may still be missing.
        return not any(claimed_by(claim, incarnation, time_of(incarnation)) for claim in seen.claims)


def _forced(message_id: str, incarnation: str) -> Ack:
    return Ack(message_id, AckStatus.PROCESSING, None, incarnation)
