"""Rules that find problems of one run, from the verdict of `run_state.py`. Pure; they repair nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from daemon.core.command_words import one_word, two_words
from daemon.core.diagnosis import Diagnosis, span
from daemon.core.facts import DaemonState, HostFacts, RunFacts, SessionFacts
from daemon.core.run_state import FINISHED, Confidence, Life, RunStatus
from schema.instants import to_text

FUTURE_ALLOWED_MS: Final = 2_000  # a heartbeat further ahead than this is not evidence, as for the sweep
_FOREVER: Final = 2**60

RunRule = Callable[[HostFacts, SessionFacts, RunFacts], Diagnosis | None]


def _contradiction(host: HostFacts, one: SessionFacts, run: RunFacts) -> Diagnosis | None:
    if not run.verdict.inconsistent:
        return None
    summary = "The sources contradict each other about how it ended; no command may choose between them."
    return _about(
        one,
        run,
        "CONTRADICTION",
        summary,
        f"clawbus run show {_run_id(run)} --session {one_word(one.agent, one.session)}",
    )


def _stuck_claim(host: HostFacts, one: SessionFacts, run: RunFacts) -> Diagnosis | None:
    seen = run.evidence
    if run.verdict.status is not RunStatus.RUNNING or seen.life is not Life.ALIVE or seen.claimed_at is None:
        return None
    declared = min(run.declared_ms or 0, host.max_declared_ms)
    born = max(seen.claimed_at, run.born_at or 0)
    beat = run.heartbeat_at
    moved = beat is not None and born < beat <= host.now + FUTURE_ALLOWED_MS
    since, allowed = (beat, host.ceiling_ms) if moved and beat is not None else (born, host.claim_stuck_ms)
    allowed, silent = max(allowed, declared), host.now - since
    longest, age = host.claim_max_ms.get(one.agent, host.claim_max_ms.get("", _FOREVER)), host.now - born
    if silent > allowed:
        shown = f"no progress for {span(silent)}, {span(allowed)} are allowed."
    elif age > longest:
        shown = f"held for {span(age)}, {span(longest)} are allowed (claim_max_s), whatever progress it reports."
    else:
        return None
    evidence = [f"Claimed at {to_text(seen.claimed_at)}; {shown}"]
    if run.tool is not None:
        evidence.append(f"The tool {run.tool} is in flight.")
    command = f"clawbus session kill {_two(one)}"
    return _about(
        one, run, "STUCK_CLAIM", "Its container lives, holds it and makes no progress.", command, evidence, _away(host)
    )


def _lost_ack(host: HostFacts, one: SessionFacts, run: RunFacts) -> Diagnosis | None:
    verdict = run.verdict
    if not verdict.stale or verdict.status not in FINISHED or verdict.listed is verdict.status or run.evidence.endings:
        return None
    summary = f"Its agent {'finished' if verdict.status is RunStatus.COMPLETED else 'failed'} it, and the host has not recorded it."
    return _about(one, run, "LOST_ACK", summary, _settling(host, one), cause=_away(host))


def _ghost_run(host: HostFacts, one: SessionFacts, run: RunFacts) -> Diagnosis | None:
    verdict = run.verdict
    if not verdict.stale or verdict.listed is not RunStatus.RUNNING or run.evidence.life is not Life.GONE:
        return None
    summary = "It is listed as running, and its container is gone."
    return _about(one, run, "GHOST_RUN", summary, _settling(host, one), cause=_away(host))


def _stale(host: HostFacts, one: SessionFacts, run: RunFacts) -> Diagnosis | None:
    if not run.verdict.stale:
        return None
    summary = (
        f"It is listed as {run.verdict.listed.value} and is {run.verdict.status.value}, or its record is incomplete."
    )
    return _about(one, run, "STALE_RUN", summary, _settling(host, one), cause=_away(host))


def _settling(host: HostFacts, one: SessionFacts) -> str:
    """Return the repair. A starting daemon settles and retries a run; the stale sweep would cancel it."""
    return (
        host.start
        if host.daemon is DaemonState.DOWN
        else f"clawbus sweep stale --session {one_word(one.agent, one.session)} --apply"
    )


def _away(host: HostFacts) -> str | None:
    return None if host.daemon is DaemonState.UP else f"DAEMON_{host.daemon.value.upper()}"


def _run_id(run: RunFacts) -> str:
    seen = run.evidence
    return f"{seen.message_id}@{seen.incarnation}" if seen.incarnation is not None else seen.message_id


def _two(one: SessionFacts) -> str:
    return two_words(one.agent, one.session)


def _about(
    one: SessionFacts,
    run: RunFacts,
    code: str,
    summary: str,
    command: str,
    evidence: Iterable[str] = (),
    cause: str | None = None,
) -> Diagnosis:
    doubt = () if run.verdict.confidence is Confidence.HIGH else (f"Confidence: {run.verdict.confidence.value}.",)
    shown = (*evidence, *(reason.text for reason in run.verdict.reasons), *doubt)
    seen = run.evidence
    return Diagnosis(code, summary, shown, command, one.agent, one.session, seen.message_id, seen.incarnation, cause)


RUN: Final[tuple[RunRule, ...]] = (_contradiction, _stuck_claim, _lost_ack, _ghost_run, _stale)
