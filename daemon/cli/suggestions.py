"""Suggests names for something that does not exist: a session, an agent, an id, a user, a route. Reads files only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from daemon.cli.envelope import NextAction, Outcome
from daemon.core.command_words import two_words
from schema.errors import ClawbusError

_NAMED: Final = 3
_SESSIONS: Final = 50  # whose newest ids are compared
_IDS: Final = 100
_MEANT: Final = "did you mean"
_UNKNOWN_SESSION, _UNKNOWN_MESSAGE = "UNKNOWN_SESSION", "UNKNOWN_MESSAGE"
# Things with a name of their own: the argument that names one, and the command that shows the one that was meant.
_NAMES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "UNKNOWN_AGENT": ("agent", "agent show {}"),
        "UNKNOWN_QUESTION": ("question", "question show {}"),
        "UNKNOWN_SCHEDULE": ("key", "schedule show {}"),
        "UNKNOWN_USER": ("name", "user list"),
        "UNKNOWN_ROUTE": ("name", "route list"),
    }
)
_NEAR: Final = frozenset({_UNKNOWN_SESSION, _UNKNOWN_MESSAGE, *_NAMES})


def with_suggestions(
    data_dir: Callable[[], Path], outcome: Outcome, given: Mapping[str, object], id_parameters: Iterable[str]
) -> Outcome:
    """Return the outcome; where a session or an id is unknown, with the nearest ones that there are.

    `data_dir` may raise a ClawbusError. `given` are the command's arguments, `id_parameters` the names of those that take ids.
    """
    problem = outcome.problem
    if problem is None or problem.code not in _NEAR or _MEANT in problem.message:
        return outcome
    near: Callable[[], list[tuple[str, str]]]
    code = problem.code
    if code == _UNKNOWN_SESSION:
        near = lambda: _sessions(data_dir(), given)  # noqa: E731
    elif code in _NAMES:
        near = lambda: _named(data_dir(), code, given)  # noqa: E731
    else:
        words = [word for name in id_parameters for word in _words(given.get(name)) if word in problem.message]
        near = lambda: _ids(data_dir(), words)  # noqa: E731
    try:
        found = near()[:_NAMED]
    except ClawbusError:  # without the ids there is nothing to suggest; the error itself is reported
        return outcome
    if not found:
        return outcome
    meant = " or ".join(name for name, _ in found)
    steps = (*(NextAction(command, "the nearest") for _, command in found), *outcome.next_actions)
    problem = replace(problem, message=f"{problem.message.rstrip('.')}; {_MEANT} {meant}?")
    return replace(outcome, problem=problem, next_actions=steps)


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """Return the names similar to a word, ignoring case, the most similar first; then those that contain it."""
    by_lower: dict[str, str] = {name.lower(): name for name in names}
    close = get_close_matches(word.lower(), by_lower, n=_NAMED, cutoff=0.7)
    parts = [name for name in by_lower if len(word) >= _NAMED and word.lower() in name and name not in close]
    return [by_lower[name] for name in [*close, *parts]]


def _sessions(data_dir: Path, given: Mapping[str, object]) -> list[tuple[str, str]]:
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415

    agent, session = (given.get(name) for name in ("agent", "session"))
    wanted = "/".join(part for part in (agent, session) if isinstance(part, str))
    known = {"/".join(key): key for key in read_central(data_dir).known()}
    name = wanted.rpartition("/")[2]
    same = [one for one, key in known.items() if key[1] == name]  # of another agent
    found = list(dict.fromkeys([*same, *nearest(wanted, known)]))
    return [(one, f"clawbus session show {two_words(*known[one])}") for one in found]


def _named(data_dir: Path, code: str, given: Mapping[str, object]) -> list[tuple[str, str]]:
    import shlex  # noqa: PLC0415

    argument, command = _NAMES[code]
    wanted = given.get(argument)
    if not isinstance(wanted, str):
        return []
    if code == "UNKNOWN_AGENT":
        wanted = wanted.partition("/")[0]
    found = dict.fromkeys(nearest(wanted, _names_there(data_dir, code)))
    return [(one, f"clawbus {command.format(shlex.quote(one))}") for one in found]


def _names_there(data_dir: Path, code: str) -> list[str]:
    """Return the existing names of the kind of thing that the error code says is unknown. Raise the errors of reading a folder."""
    from daemon.core.clock import SystemClock  # noqa: PLC0415
    from daemon.inspect import central_reading, people_reading, question_reading, schedule_list  # noqa: PLC0415
    from daemon.store.data_layout import Layout  # noqa: PLC0415

    if code == "UNKNOWN_AGENT":
        folders = Layout(data_dir).agents_dir  # the daemon makes one for each configured agent
        here = [one.name for one in folders.iterdir()] if folders.is_dir() else []
        return list(dict.fromkeys([*here, *(agent for agent, _ in central_reading.read_central(data_dir).known())]))
    if code == "UNKNOWN_QUESTION":
        return [one["id"] for one in question_reading.questions_report(data_dir, SystemClock())["questions"]]
    if code == "UNKNOWN_SCHEDULE":
        return [one["key"] for one in schedule_list.schedules_report(data_dir, SystemClock())["schedules"]]
    if code == "UNKNOWN_USER":
        return [one["name"] for one in people_reading.read_users(data_dir)]
    from daemon.inspect.routing_reading import stored_route_names  # noqa: PLC0415

    return stored_route_names(data_dir)


def _ids(data_dir: Path, words: Collection[str]) -> list[tuple[str, str]]:
    import shlex  # noqa: PLC0415

    from daemon.inspect.central_reading import read_central  # noqa: PLC0415
    from daemon.inspect.finding import newest_ids  # noqa: PLC0415

    ids = newest_ids(data_dir, read_central(data_dir).known()[:_SESSIONS], _IDS)
    found = [one for word in words for one in nearest(word, ids)]
    # An id that exists was not mistyped: the command only does not work on it.
    meant = [one for one in dict.fromkeys(found) if one not in words]
    return [(one, f"clawbus message show {shlex.quote(one)}") for one in meant]


def _words(value: object) -> list[str]:
    several = cast("list[Any]", value) if isinstance(value, list) else [value]
    return [one for one in several if isinstance(one, str)]
