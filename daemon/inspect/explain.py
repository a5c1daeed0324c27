"""Why a session needs somebody: one sentence from what is recorded. Pure; it decides nothing and reads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from daemon.core.command_words import two_words
from daemon.core.session_rules import UNCLAIMED_MS
from daemon.inspect.session_reading import Queues
from schema.instants import to_text

_COUNT: Final = re.compile(r"^gave up after \d+ (try|tries|attempts?): ")
_ANSWER: Final = "Mend what the reason names, then requeue it; or drop it."
_MESSAGE: Final = (
    "Find out what the message does to the agent (the session's container log), then requeue it; or drop it."
)
_STEPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "IN_DOUBT": "Ask the receiver whether it has this id: requeue it if not, drop it if so.",
        "ROW_GONE": "There is nothing left to send: drop it, and send the message that it answers anew.",
        "BAD_CONTENT": "Correct the agent; this row will never be sendable: drop it.",
        "UNKNOWN_KIND": "Correct the runner; this row will never be sendable: drop it.",
        "UNAUTHORISED_DESTINATION": "Add the destination if the session should write there, then requeue it; or drop it.",
        "NO_ROUTE": "Nobody knows where it goes: once a message has come in from a channel, requeue it; or drop it.",
        "NO_CHANNEL": "Configure the channel that the reason names and restart, then requeue it; or drop it.",
        "AGENT_FAILED": "The sender was told that the agent could not answer, and this id: mend the agent, then requeue it; or drop it.",
    }
)


def state_of(registry: Mapping[str, Any], live: Mapping[str, Any] | None, now_ms: int) -> str:
    """quarantined, running, starting, backing_off, waiting (work, no container), scheduled or idle."""
    if registry.get("quarantined_at") is not None:
        return "quarantined"
    if live is not None:
        return "running" if live.get("container_id") is not None else "starting"
    if (registry.get("next_spawn_at") or 0) > now_ms:
        return "backing_off"
    if registry.get("active"):
        return "waiting"
    return "scheduled" if registry.get("next_due_at") is not None else "idle"


def explain(registry: Mapping[str, Any], live: Mapping[str, Any] | None, queues: Queues, now_ms: int) -> str | None:
    """Return the most pressing reason to attend to this session as one sentence, or None.

    `live` is its incarnation, if it has one: once its container runs, the failures that are counted until it has proved
    itself are past. One that is only being tried is no news.
    """
    blocked = held_up(registry, live, queues, now_ms)
    if blocked is not None:
        return blocked
    if queues.retrying_example is not None:
        return _retrying(queues, queues.retrying_example)
    if queues.failed_example is not None:
        return _failed(queues, queues.failed_example)
    if queues.dead_example is not None:
        return _dead(queues, queues.dead_example)
    return None


def held_up(registry: Mapping[str, Any], live: Mapping[str, Any] | None, queues: Queues, now_ms: int) -> str | None:
    """As `explain`, but only what keeps the session's next message waiting: a dead letter delays nothing."""
    name = two_words(registry["agent"], registry["session"])
    if registry.get("quarantined_at") is not None:
        reason = str(registry.get("quarantine_reason") or "no reason was recorded").rstrip(".")
        since = to_text(int(registry["quarantined_at"]))
        return f"In quarantine since {since}: {reason}; mend it, then `clawbus session release {name}`."
    if queues.error is not None:
        return f"Its files cannot be read: {queues.error.rstrip('.')}."
    if registry.get("spawn_failures") and (live is None or live.get("container_id") is None):
        count, error = registry["spawn_failures"], str(registry.get("last_spawn_error") or "unknown").rstrip(".")
        return f"Its container could not be started ({count} times in a row): {error}."
    unclaimed = _unclaimed(live, queues, name, now_ms) if live is not None else None
    return unclaimed or _held(queues)


def next_step(kind: str, code: str | None) -> str:
    """Return what to do about an open dead letter; `kind` is in or out."""
    return _STEPS.get(code or "", _MESSAGE if kind == "in" else _ANSWER)


def _retrying(queues: Queues, example: Mapping[str, Any]) -> str:
    others = f" (and {queues.retrying - 1} more)" if queues.retrying > 1 else ""
    reason = str(example["error"] or example["code"] or "no reason was recorded").rstrip(".")
    behind = (
        f"; {_times(example['holds_back'], 'answer waits', 'answers wait')} behind it" if example["holds_back"] else ""
    )
    attempts = _times(example["attempts"], "time", "times")
    return f"Answer {example['id']}{others} to {example['to']} has failed {attempts}: {reason}{behind}."


def _held(queues: Queues) -> str | None:
    """Messages that wait for an earlier one, and nothing else is in their way."""
    if queues.holder is None or not queues.held or queues.due:
        return None
    wait = "message waits" if queues.held == 1 else "messages wait"
    return f"{queues.held} {wait} for an earlier one: {queues.holder.sentence}."


def _failed(queues: Queues, example: Mapping[str, Any]) -> str:
    event: Mapping[str, Any] = example.get("last_event") or {}
    detail: Mapping[str, Any] = event.get("detail") or {}
    reason = detail.get("reason") or detail.get("error") or event.get("event") or "no reason was recorded"
    others = f" (and {queues.failed - 1} more)" if queues.failed > 1 else ""
    tries = example.get("tries") or 0
    if detail.get("code") == "AGENT_FAILED":
        return f"The agent failed at message {example['id']}{others}: {str(reason).rstrip('.')}."
    return f"Message {example['id']}{others} was given up after {_times(tries, 'try', 'tries')}: {_once(str(reason))}."


def _dead(queues: Queues, example: Mapping[str, Any]) -> str:
    others = f" (and {queues.dead - 1} more)" if queues.dead > 1 else ""
    reason = str(example.get("last_error") or example.get("last_error_code") or "no reason was recorded")
    place = f" to {example['destination']}" if example["destination"] else ""
    attempts = f" in {_times(example['attempts'], 'attempt', 'attempts')}" if example["attempts"] else ""
    return f"Answer {example['message_out_id']}{others} could not be delivered{place}{attempts}: {_once(reason)}."


def _once(reason: str) -> str:
    """Return a reason without the count that the sentence around it begins with."""
    return _COUNT.sub("", reason).rstrip(".")


def _times(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _unclaimed(live: Mapping[str, Any], queues: Queues, name: str, now_ms: int) -> str | None:
    """Explain a container that runs and claims nothing: its runner hangs, or cannot read its folder."""
    if live.get("container_id") is None or queues.oldest_due_at is None or queues.claimed:
        return None
    waited = now_ms - max(queues.oldest_due_at, int(live.get("started_at") or live.get("created_at") or 0))
    if waited < UNCLAIMED_MS:
        return None
    due = _times(queues.due, "message", "messages")
    return (
        f"{due} due for {waited // 1000} s and not claimed: the container's runner may hang or not see its folder"
        f" (the session's container log); `clawbus session stop {name}` makes a new one."
    )
