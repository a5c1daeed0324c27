"""Reads and checks the runner's settings, which come only from environment variables. Keeps no state.

Every invalid value raises a SettingsError that names the variable and the key.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from container_runner.providers.acp.permissions import read_policies
from container_runner.shared.errors import SettingsError
from schema import layout
from schema.frozen import frozen
from schema.ids import is_message_id
from schema.rows import RunnerSettings
from schema.tools import TOOLS

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_CHOICES: Final = (
    ("error_detail", ("operator", "sender")),
    ("leftovers", ("end", "keep")),
    ("lifetime", ("turn", "container")),
    ("output", ("auto", "text", "lines")),
    ("log_level", LOG_LEVELS),
)
_ABOVE_ZERO: Final = ("timeout_s", "max_batch", "poll_s", "watch_step_ms", "max_answer_bytes", "prune_batch")
_ZERO_OR_ABOVE: Final = ("grace_s", "keep_s", "max_files", "max_file_bytes")


@frozen
class Environment:
    """Everything that the environment tells a runner: its settings, its incarnation, two names and four folders.

    `agent` and `session` are only passed on to the agent's program and may be empty. The runner itself needs only the folders.
    """

    settings: RunnerSettings
    incarnation: str
    agent: str
    session: str
    in_folder: Path
    out_folder: Path
    agent_folder: Path
    gate_folder: Path


def read_environment(environ: Mapping[str, str], providers: typing.Collection[str]) -> Environment:
    """Read and check the environment. `providers` are the names of the available providers. Raise SettingsError."""
    incarnation = environ.get(layout.ENV_INCARNATION, "")
    if not is_message_id(incarnation):
        raise SettingsError(f"{layout.ENV_INCARNATION} must be this incarnation's id; it is {incarnation!r}.")
    return Environment(
        settings=_check(_read_settings(environ), providers),
        incarnation=incarnation,
        agent=environ.get(layout.ENV_AGENT_NAME, ""),
        session=environ.get(layout.ENV_SESSION_NAME, ""),
        in_folder=Path(environ.get(layout.ENV_IN) or layout.CONTAINER_IN),
        out_folder=Path(environ.get(layout.ENV_OUT) or layout.CONTAINER_OUT),
        agent_folder=Path(environ.get(layout.ENV_AGENT) or layout.CONTAINER_AGENT),
        gate_folder=Path(environ.get(layout.ENV_GATE) or layout.CONTAINER_GATE),
    )


def _read_settings(environ: Mapping[str, str]) -> RunnerSettings:
    text = environ.get(layout.ENV_RUNNER)
    if text is None:
        raise SettingsError(f"{layout.ENV_RUNNER} is not set.")
    try:
        values: object = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{layout.ENV_RUNNER} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{layout.ENV_RUNNER} must be a JSON object.")
    hints = typing.get_type_hints(RunnerSettings)
    given = cast(dict[str, Any], values)
    unknown = sorted(set(given) - {field.name for field in dataclasses.fields(RunnerSettings)})
    if unknown:
        raise SettingsError(
            f"{layout.ENV_RUNNER}: unknown key {unknown[0]!r}: the image and the daemon are of different versions."
        )
    values_by_key: dict[str, Any] = {key: _typed(key, value, hints[key]) for key, value in given.items()}
    return RunnerSettings(**values_by_key)


def _typed(key: str, value: object, wanted: object) -> object:
    """Convert a JSON value to its field's type: a list to a tuple, and an integer to a float where one is wanted."""
    if isinstance(wanted, types.GenericAlias):
        parts = cast(list[object], value) if isinstance(value, list) else None
        if parts is not None and all(isinstance(part, str) and "\0" not in part for part in parts):
            return tuple(parts)
        raise SettingsError(f"{layout.ENV_RUNNER}: {key} must be a list of strings without NUL; it is {value!r:.80}.")
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise SettingsError(f"{layout.ENV_RUNNER}: {key} is too large a number.") from None
    if isinstance(wanted, type) and isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    name = wanted.__name__ if isinstance(wanted, type) else str(wanted)
    raise SettingsError(f"{layout.ENV_RUNNER}: {key} must be of type {name}; it is {value!r:.80}.")


def _check(settings: RunnerSettings, providers: typing.Collection[str]) -> RunnerSettings:
    for key in _ABOVE_ZERO:
        # `not 0 < x` rather than `x <= 0`, because both comparisons are false for NaN.
        if not 0 < getattr(settings, key) < float("inf"):
            raise SettingsError(f"{layout.ENV_RUNNER}: {key} must be a number above 0.")
    for key in _ZERO_OR_ABOVE:
        if not 0 <= getattr(settings, key) < float("inf"):
            raise SettingsError(f"{layout.ENV_RUNNER}: {key} must be 0 or more.")
    if not -1 <= settings.egress_port <= 65_535:
        raise SettingsError(f"{layout.ENV_RUNNER}: egress_port must be a port number, 0 for any port, or -1 for none.")
    if settings.provider not in providers:
        raise SettingsError(
            f"{layout.ENV_RUNNER}: unknown provider {settings.provider!r}.", hint=f"One of: {', '.join(providers)}."
        )
    if settings.provider in ("command", "acp") and not settings.command:
        name = settings.provider
        raise SettingsError(f"{layout.ENV_RUNNER}: provider {name!r} needs `command`, a program and its arguments.")
    try:
        read_policies(settings.permissions)
    except ValueError as error:
        raise SettingsError(f"{layout.ENV_RUNNER}: permissions: {error}.") from error
    if unknown := set(settings.tools) - set(TOOLS):
        raise SettingsError(f"{layout.ENV_RUNNER}: tools: there is no tool {min(unknown)!r}.")
    for key, choices in _CHOICES:
        if getattr(settings, key) not in choices:
            raise SettingsError(f"{layout.ENV_RUNNER}: {key} must be one of {', '.join(choices)}.")
    return settings
