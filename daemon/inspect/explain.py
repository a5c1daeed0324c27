"""Returns a session's state, a sentence on why it needs attention, and what to do about a dead letter. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from daemon.core.command_words import two_words
from daemon.core.diagnoses import most_pressing
from daemon.core.diagnosis import Diagnosis
from daemon.core.facts import HostFacts, SessionFacts
from daemon.core.run_state import Life
from daemon.core.session_state import SessionState
from daemon.inspect.agents_now import UNKNOWN, AgentsNow
from daemon.inspect.queues import Queues
from daemon.inspect.session_facts import live_record, recorded_facts

_ANSWER: Final = "Fix what the reason names, then requeue it; or drop it."
_MESSAGE: Final = "Find out what the message does to the agent (its run has what the container wrote last), then requeue it; or drop it."
_STEPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "IN_DOUBT": "Ask the receiver whether it has this id: requeue it if not, drop it if so.",
        "ROW_GONE": "There is nothing left to send: drop it, and send the message again.",
        "BAD_CONTENT": "Correct the agent; this row will never be sendable: drop it.",
        "UNKNOWN_KIND": "Correct the runner; this row will never be sendable: drop it.",
        "UNAUTHORISED_DESTINATION": "Add the destination if the session should write there, then requeue it; or drop it.",
        "DESTINATION_REVOKED": "Add the route or destination again if the session should write there, then requeue it; or drop it.",
        "AGENT_HOP_LIMIT": "Change what the agents are told to ask each other, then drop it; or raise agent_messages.max_hops and requeue it.",
        "NO_ROUTE": "Its destination is unknown: once a message has come in from a channel, requeue it; or drop it.",
        "NO_CHANNEL": "Configure the channel that the reason names and restart, then requeue it; or drop it.",
        "AGENT_FAILED": "The sender got an error answer with this id. Repair the agent and requeue it, or drop it.",
    }
)


def state_of(
    registry: Mapping[str, Any], live: Mapping[str, Any] | None, queues: Queues | None, now_ms: int
) -> SessionState:
    """Return the session's state. `queues` is None if its files were not read: then only the registry counts."""
    if registry.get("quarantined_at") is not None:
        return "quarantined"
    if live is not None:
        if live.get("container_id") is None:
            return "starting"
        return "working" if queues is not None and queues.claimed else "resting"
    if (registry.get("next_spawn_at") or 0) > now_ms and _wants_container(registry, queues):
        return "backing_off"
    return _without_container(registry, queues)


def _wants_container(registry: Mapping[str, Any], queues: Queues | None) -> bool:
    """Return whether a failed start is tried again: not once its messages were cancelled, or have expired."""
    if queues is None or queues.error is not None:
        return bool(registry.get("active"))
    return queues.pending > queues.scheduled


def _without_container(registry: Mapping[str, Any], queues: Queues | None) -> SessionState:
    if queues is not None and queues.error is None and not (queues.due or queues.undelivered):
        if queues.backing_off:
            return "backing_off"
        if queues.scheduled or queues.scheduled_answers:
            return "scheduled"
    if registry.get("active"):
        return "waiting"
    return "scheduled" if registry.get("next_due_at") is not None else "idle"


def explain(
    registry: Mapping[str, Any],
    live: Mapping[str, Any] | None,
    queues: Queues,
    now_ms: int,
    agents: AgentsNow = UNKNOWN,
    *,
    shown: bool = False,
    errors: Sequence[str] = (),
) -> str | None:
    """Return the most pressing reason to attend to this session on one line, or None: by doctor's own rules.

    `shown`: for `session show`, which must not send its reader to itself. `errors`: why the container's file could not be read,
    where somebody tried; of a session in quarantine they decide whether a release would last.
    `live` is the row of its unconfirmed incarnation. Whether that container lives is taken from the registry: no runtime is
    asked.
    """
    found = most_pressing(_host(now_ms, agents), _facts(registry, live, queues, errors))
    if found is None:
        return None
    if shown:
        return found.sentence_with_repairs if found.command.startswith("clawbus session show ") else found.sentence
    if found.code == "QUARANTINED":
        # Whether a release would last depends on the container's file, which a list does not open.
        show = f"clawbus session show {two_words(registry['agent'], registry['session'])}"
        return replace(found, command=show).sentence
    return found.sentence


def held_up(
    registry: Mapping[str, Any],
    live: Mapping[str, Any] | None,
    queues: Queues,
    now_ms: int,
    agents: AgentsNow = UNKNOWN,
    *,
    errors: Sequence[str] = (),
) -> str | None:
    """Return what keeps the session's next message waiting, or None. Unlike `explain`, ignore dead letters: they delay nothing."""
    return _sentence(most_pressing(_host(now_ms, agents), _facts(registry, live, queues, errors), blocking=True))


def next_step(kind: str, code: str | None) -> str:
    """Return what to do about an open dead letter; `kind` is in or out."""
    return _STEPS.get(code or "", _MESSAGE if kind == "in" else _ANSWER)


def _host(now_ms: int, agents: AgentsNow) -> HostFacts:
    # Nothing is held back as too young: who asks wants to know at once why a message waits.
    return HostFacts(now_ms, "", held_ms=0, agents_stopped=tuple(agents.stopped.items()), agents=agents.configured)


def _facts(
    registry: Mapping[str, Any], live: Mapping[str, Any] | None, queues: Queues, errors: Sequence[str]
) -> SessionFacts:
    running = live is not None and live.get("container_id") is not None
    life = Life.ALIVE if running else Life.UNKNOWN
    facts = recorded_facts((registry["agent"], registry["session"]), registry, live_record(live, life), queues)
    if facts.quarantined_at is None:
        return facts
    return replace(facts, errors=tuple(dict.fromkeys((*facts.errors, *errors))))


def _sentence(found: Diagnosis | None) -> str | None:
    return found.sentence if found is not None else None
