"""`clawbus doctor`: lists problems with their evidence and the command that repairs each. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from daemon.cli.command import add
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.names import pair
from daemon.core.clock import SystemClock
from daemon.core.command_words import only_shows
from daemon.core.errors import ConfigError
from daemon.core.findings import Finding, findings_of
from daemon.core.printable import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from daemon.config.models import Config
    from daemon.config.salvage import Salvaged
    from daemon.core.diagnosis import Diagnosis
    from daemon.inspect.containers import RuntimeSeen
    from daemon.inspect.doctor import Doctor, Examination

_NEXT: Final = 5
_NAMED: Final = 5  # sessions named for one consequence


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "doctor", doctor)


def doctor(
    invocation: Invocation,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="A/S", help="Only the host and this session.")
    ] = None,
) -> Outcome:
    """Find everything that is wrong: the host, stuck sessions, runs whose sources disagree. Changes nothing.

    Use it first when woken at night. Each finding has its evidence and the command that repairs it; a finding with a
    cause goes away with that. It works from the files when the daemon is down. Exit code 1 when anything is wrong.

    \b
    Example:
      clawbus doctor
    """
    named = pair(session, None) if session is not None else None
    found = _doctor(invocation).examine(named)
    findings = [replace(one, head=here(invocation, one.head)) for one in findings_of(found.diagnoses)]
    found.diagnoses = [here(invocation, one) for one in found.diagnoses]
    result: dict[str, Any] = {
        "source": "daemon" if found.daemon.value == "up" else "files",
        "daemon": found.daemon.value,
        "healthy": found.healthy,
        "at": found.at,
        "diagnoses": [asdict(one) for one in found.diagnoses],
        "findings": [_as_result(one) for one in findings],
        "examined": {"sessions": found.sessions, "runs": found.runs, "not_examined": found.not_examined},
    }
    if found.healthy:
        return Outcome(result, lambda console: _show(console, found, ()))
    show = partial(_show, found=found, findings=findings)
    return Outcome(result, show, _steps(findings), _problem(findings), steps_shown=True)


def _doctor(invocation: Invocation) -> Doctor:
    """Return the doctor of the configuration, or of what can be read of a broken one: it is a finding, and not the last."""
    from daemon.cli.daemon_status import settled_status  # noqa: PLC0415
    from daemon.inspect.containers import RuntimeSeen, look_at_runtime  # noqa: PLC0415 - the runtimes
    from daemon.inspect.doctor import Doctor  # noqa: PLC0415

    faults: tuple[str, ...] = ()
    runtime = look_at_runtime
    try:
        _ = invocation.config
    except ConfigError as error:
        from daemon.config.salvage import salvage  # noqa: PLC0415

        left = salvage(_file_of(invocation), invocation.options.data)
        invocation.config = left.config
        faults = (f"{error} {error.hint or ''}".strip(), _unseen(left))
        if not left.knows_runtime:
            runtime = _unknown_runtime(RuntimeSeen(None))
    return Doctor(
        invocation.config, SystemClock(), lambda: settled_status(invocation), runtime=runtime, config_faults=faults
    )


def _file_of(invocation: Invocation) -> Path | None:
    try:
        return invocation.config_file
    except ConfigError:  # there is one that this user may not read
        return None


def _unknown_runtime(nothing: RuntimeSeen) -> Callable[[Config, str | None], RuntimeSeen]:
    return lambda _, __: nothing


def _unseen(left: Salvaged) -> str:
    read = f"Examined: {left.config.data_dir}. Not used: {', '.join(left.missing) or 'nothing'}"
    containers = "" if left.knows_runtime else ", containers and images"
    return f"{read}. Not examined: routes{containers}."


def _as_result(finding: Finding) -> dict[str, Any]:
    ended = [
        {"code": one.code, "agent": one.agent, "session": one.session, "message_id": one.message_id}
        for one in finding.consequences
    ]
    sessions = [{"agent": one.agent, "session": one.session} for one in finding.same if one.agent is not None]
    return {**asdict(finding.head), "sessions": sessions, "consequences": ended}


def here(invocation: Invocation, one: Diagnosis) -> Diagnosis:
    """Return the finding with commands that can be copied and run."""
    choices = tuple(replace(choice, command=invocation.here(choice.command)) for choice in one.choices)
    return replace(one, command=invocation.here(one.command), choices=choices)


def _problem(findings: Sequence[Finding]) -> Problem:
    first = findings[0].head
    others = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return Problem("UNHEALTHY", f"{first.code}: {first.summary}{others}", f"Run: {first.command}")


def _steps(findings: Sequence[Finding]) -> tuple[NextAction, ...]:
    """Return the commands, each once."""
    steps: dict[str, NextAction] = {}
    for one in (finding.head for finding in findings):
        if not one.command.startswith("clawbus "):
            continue  # a system command is shown in the finding only
        steps.setdefault(one.command, NextAction(one.command, f"{one.code} {_subject(one)}".strip()))
    return tuple(steps.values())[:_NEXT]


def _subject(one: Any) -> str:
    return f"{one.agent}/{one.session}" if one.agent is not None else ""


def _show(console: Console, found: Examination, findings: Sequence[Finding]) -> None:
    from daemon.cli.present import say, say_whole, say_wrapped  # noqa: PLC0415

    where = {
        "up": "the daemon is up",
        "down": "the daemon is down, read from the files",
        "silent": "the daemon is silent",
    }
    said = f"{counted(found.sessions, 'session')} and {counted(found.runs, 'unfinished or doubtful run')} examined; {where[found.daemon.value]}."
    if found.not_examined:
        said += f" {counted(found.not_examined, 'session was', 'sessions were')} left out for lack of time."
    say_wrapped(console, "", said)
    if found.healthy:
        say(console, "Nothing is wrong.")
    for number, finding in enumerate(findings, 1):
        one = finding.head
        subject = " ".join(
            part for part in (_subject(one), f"message {one.message_id}" if one.message_id else "") if part
        )
        say(console, "")
        say_wrapped(console, f"{number}. ", f"{one.code}{f'  {subject}' if subject else ''}")
        say_wrapped(console, "   ", one.summary)
        for line in one.evidence:
            say_wrapped(console, "   - ", line)
        if finding.consequences:
            say_wrapped(console, "   - ", f"Goes away with it: {_consequences(finding)}.")
        # Commands stay on one line, however long: people copy them.
        because = f"   (because of {one.cause}; goes away with it)" if one.cause is not None else ""
        say_whole(console, f"   {'read first' if only_shows(one.command) else 'repair'}: {one.command}{because}")
        say_whole(console, *(f"   or, {choice.when}: {choice.command}" for choice in one.choices))


def _consequences(finding: Finding) -> str:
    """Return the codes of findings that go away with this one, each with its sessions."""
    by_code: dict[str, list[str]] = {}
    for one in finding.consequences:
        by_code.setdefault(one.code, []).append(_subject(one) or "the host")
    said: list[str] = []
    for code, subjects in by_code.items():
        named = list(dict.fromkeys(subjects))
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        said.append(f"{code} ({', '.join(named[:_NAMED])}{more})")
    return ", ".join(said)
