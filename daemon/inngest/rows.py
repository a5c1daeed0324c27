"""One run's evidence, as the database has it: plain data that `truth.py` and `plan.py` judge. Pure; nothing is opened here.

All times are epoch milliseconds; `*_text` is a column's own text, kept where a new row must imitate it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.inngest.values import Status, status_of_code, ulid_ms
from schema.frozen import frozen


@frozen
class Function:
    """A registered function. `app` is its app's name where the database has it."""

    id: str
    name: str | None = None
    slug: str | None = None
    app: str | None = None
    app_id: str | None = None

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or self.slug or self.id

    @property
    def names(self) -> frozenset[str]:
        """Everything that names it: name, slug, the slug without its app, id."""
        short = (self.slug or "").removeprefix(f"{self.app}-") if self.app else None
        return frozenset(one for one in (self.name, self.slug, short, self.id) if one)


@frozen
class Listed:
    """The run's row in `trace_runs`: what the list says (the last in the truth order)."""

    code: int
    queued_at: int | None
    started_at: int | None
    ended_at: int | None

    @property
    def status(self) -> Status:
        """By either numbering."""
        return status_of_code(self.code)


@frozen
class Registered:
    """The run's row in `function_runs`; raw values, because a history row repeats them."""

    run_id: object
    started_text: object
    function_id: object
    function_version: int
    event_id: object
    batch_id: object


@frozen
class Ending:
    """A terminal history row. `swept`: a sweep of clawbus wrote it, so it is an opinion and no server's report."""

    type: str
    status: Status
    at: int | None
    swept: bool = False


@frozen
class RunSpan:
    """The root span group of a run (`executor.run` and its EXTEND rows): what servers since 1.16.3 list.

    `row` holds the root's columns; `status` and `end_text` are those of the group's last row, `swept` whether a sweep wrote it.
    """

    dynamic_id: str
    status: Status
    start_at: int | None
    end_text: str | None
    row: Mapping[str, Any]
    swept: bool = False


@frozen
class Activity:
    """What a run did last, by its history and spans."""

    last_at: int | None = None  # the newest row of any kind
    waits_until: int | None = None  # a sleep or a wait that has not been resumed
    steps: int = 0  # rows of an execution
    created_text: str | None = None  # created_at of the newest history row
    errors: tuple[str, ...] = ()  # texts in which a step or the run says why it failed


@frozen
class LostWorker:
    """A worker in connect mode whose connection was lost. It may have been working on runs between these times."""

    connected_at: int
    lost_at: int


@frozen
class Run:
    """All there is about one run."""

    key: str
    function: Function
    listed: Listed | None = None
    registered: Registered | None = None
    endings: tuple[Ending, ...] = ()
    finish: Status | None = None
    finished_at: int | None = None
    spans: tuple[RunSpan, ...] = ()
    activity: Activity = Activity()
    lost_workers: tuple[LostWorker, ...] = ()  # lost workers of the run's application

    @property
    def started_at(self) -> int:
        """The first of: the list's start, its queueing, the span's start, the time in the id."""
        listed = (self.listed.started_at, self.listed.queued_at) if self.listed is not None else ()
        starts = (*listed, *(one.start_at for one in self.spans))
        return next((one for one in starts if one is not None), ulid_ms(self.key))

    @property
    def last_at(self) -> int:
        """The newest sign of life."""
        return max(self.started_at, self.activity.last_at or 0)
