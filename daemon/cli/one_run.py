"""`clawbus run show ID`: one run from acceptance to receipt, its real status, and the findings that explain it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from daemon.cli.daemon_status import daemon_status
from daemon.cli.doctor import here
from daemon.cli.envelope import NextAction, Outcome
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.core.clock import SystemClock
from daemon.core.daemon_status import DaemonState
from daemon.inspect.doctor import Doctor
from daemon.inspect.life import life_of
from daemon.inspect.runs import Found, Runs

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.core.diagnosis import Diagnosis


def one_run(invocation: Invocation, identity: str, session: str | None) -> Outcome:
    """Show the run with this id, or the latest run of the message with this id. Name the message's other runs."""
    clock = SystemClock()
    daemon = daemon_status(invocation)
    runs = Runs(invocation.config, clock, synced=daemon.state is DaemonState.UP)
    found = runs.find(identity, pair(session, None) if session is not None else None)
    life = life_of(invocation.config, found, runs.install_id)
    explained = [] if _is_fine(found, life) else _explain(invocation, found)
    result: dict[str, Any] = {
        "source": "files",
        "daemon": daemon.state.value,
        **life,
        "diagnoses": [asdict(one) for one in explained],
    }
    ours = [one for one in explained if one.cause is None and one.command.startswith("clawbus ")]
    steps = tuple(NextAction(one.command, f"{one.code}: repair") for one in ours)
    if not steps and life["other_runs"]:
        steps = (NextAction(f"clawbus run show {life['other_runs'][-1]['run_id']}", "another run of this message"),)
    return Outcome(result, lambda console: _show(console, result), steps[:3])


def _is_fine(found: Found, life: Mapping[str, Any]) -> bool:
    """Return whether nothing is left to explain: the run ended well, and its answers are delivered."""
    verdict = found.wanted.verdict
    if verdict.stale or verdict.status.value not in ("completed", "cancelled", "released", "orphaned"):
        return False
    undelivered = ("delivery_", "dead_")
    return not any(str(event["event"]).startswith(undelivered) for event in life["deliveries"])


def _explain(invocation: Invocation, found: Found) -> list[Diagnosis]:
    """Return the findings about the run, its session and the host, in this order."""
    doctor = Doctor(invocation.config, SystemClock(), lambda: daemon_status(invocation))
    message_id = found.wanted.evidence.message_id
    every = doctor.examine(found.key).diagnoses
    ours = [one for one in every if one.agent is None or one.message_id in (None, message_id)]
    placed = [here(invocation, one) for one in ours]
    return sorted(placed, key=lambda one: (one.message_id is None, one.agent is None))


def _show(console: Console, result: Mapping[str, Any]) -> None:
    from daemon.cli.event_lines import container_line  # noqa: PLC0415
    from daemon.cli.present import age, briefs, moment, pairs, say, say_whole, table, usage_text, when  # noqa: PLC0415

    now = SystemClock().now_ms()
    durations: Mapping[str, Any] = result["durations"]
    facts: dict[str, object] = {
        "run": result["run_id"],
        "session": f"{result['agent']}/{result['session']}",
        "text": result["text"],
        "status": _status(result),
        "waited": age(durations["waited_ms"]),
        "worked": _worked(result, now),
        "delivered in": age(durations["delivered_ms"]),
        "container": _container(result),
    }
    if result["usage"]:
        facts["used"] = usage_text(result["usage"])
    if result["next_try_at"] is not None:
        facts["next try"] = f"{when(result['next_try_at'], now)}, after {result['tries']} failed"
    if result["daemon"] != "up":
        facts["daemon"] = f"{result['daemon']} (read from the files)"
    pairs(console, facts)
    details = briefs(console, [event["detail"] for event in result["events"]])
    rows = [
        (moment(event["at"], None), _after(event["after_ms"]), _after(event["took_ms"]), event["event"], detail)
        for event, detail in zip(result["events"], details, strict=True)
    ]
    console.print(table("History", ("when", "after", "step", "what", "detail"), rows))
    for one in result["diagnoses"]:
        say(console, f"{one['code']}: {one['summary']}", *(f"   - {line}" for line in one["evidence"]))
        say_whole(console, f"   repair: {one['command']}")
        say_whole(console, *(f"   or, {choice['when']}: {choice['command']}" for choice in one["choices"]))
    if result["container_log"]:
        wrote = (f"  {container_line(line)}" for line in result["container_log"])
        say(console, "", "The last output of its container:")
        say_whole(console, *wrote)
    if result["other_runs"]:
        others = [(other["run_id"], _status(other), when(other["claimed_at"], now)) for other in result["other_runs"]]
        console.print(table("Other runs of this message", ("run", "status", "claimed"), others))
    say(console, *(f"could not be read: {error}" for error in result["errors"]))


def _worked(result: Mapping[str, Any], now_ms: int) -> str:
    """Return how long the agent worked on the run, or has worked on it so far."""
    from daemon.cli.present import age  # noqa: PLC0415

    taken: int | None = result["durations"]["worked_ms"]
    claimed = [one["at"] for one in result["events"] if one["event"] == "claimed" and one["at"] is not None]
    if taken is None and claimed and result["status"] == "running":
        return f"{age(max(0, now_ms - claimed[-1]))} so far"
    return age(taken)


def _status(run: Mapping[str, Any]) -> str:
    if not run["stale"]:
        return str(run["status"])
    why = " ".join(reason["text"] for reason in run["reasons"])
    return f"{run['status']}; STALE, listed as {run['listed']}, confidence {run['confidence']}: {why}"


def _container(result: Mapping[str, Any]) -> str:
    row: Mapping[str, Any] | None = result["container"]
    if row is None:
        return (
            "none yet" if result["incarnation"] is None else f"{result['container_lives']}; central.db does not know it"
        )
    if row["ended_at"] is not None:
        return f"ended: {row['end_reason']}, exit code {row['exit_code']}"
    return f"{result['container_lives']}, no end is recorded"


def _after(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds / 1000:.3f} s"
