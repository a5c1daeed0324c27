"""Adds to sessions' reports what the working ones work on, from their files. Apart from `doing`, which prints and is slow to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from daemon.cli.invocation import Invocation


def with_work(invocation: Invocation, reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sessions' reports with `work`: the oldest open turn, read from the files, or None.

    Only those without a state, or in the state `working`, are read.
    """
    return [
        {**one, "work": _read(invocation, one) if one.get("state", "working") == "working" else None} for one in reports
    ]


def _read(invocation: Invocation, one: Mapping[str, Any]) -> dict[str, Any] | None:
    from daemon.inspect.central_reading import folder_of  # noqa: PLC0415
    from daemon.inspect.work import read_work  # noqa: PLC0415
    from schema.plain_file import ReadLimits  # noqa: PLC0415

    folder = folder_of(invocation.place.data_dir, (one["agent"], one["session"]))
    work = read_work(folder, ReadLimits())  # the default ones: the configuration's cost more than the whole read
    return asdict(work) if work is not None else None
