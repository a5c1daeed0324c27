"""Where the time of one warm round trip goes: the instants that rows and logs hold of each message, subtracted.

Nothing is instrumented: what is read is what every operator has. Host instants are whole milliseconds, so a single
difference means little and the mean of hundreds means what it says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from bench.figures import Figure, Result
from bench.floor import commit_times
from bench.round_trip import Asked, ask_often
from bench.settings import Settings
from bench.spread import noise, spread
from bench.stage import ECHO, BenchFailed, BenchStage
from schema.connect import open_reader
from schema.instants import from_text
from schema.layout import SessionFolder

SESSION: Final = "steps"
_BLOCKS: Final = 10
_PER_BLOCK: Final = 40
_WARM_UP: Final = 5
_COMMITS: Final = 20
_NOTE: Final = (
    "Means, so that the steps add up. The floor of a step is its durable commits at this run's median commit. Host instants"
    " are whole milliseconds: only a mean over all messages tells anything."
)


@dataclass(frozen=True, slots=True)
class Step:
    """From the step before to the instant `until`. `commits`: how many durable ones lie in it."""

    until: str
    what: str
    commits: int = 0


BEGIN: Final = "sent"
END: Final = "received"
# In the order in which they happen to one message.
STEPS: Final = (
    Step("accepting", "the POST reaches the ingress"),
    Step("accepted", "the message is committed", 1),
    Step("claimed", "the runner wakes, looks, commits its claim", 1),
    Step("answered", "the provider's turn"),
    Step("finished", "answer and ack are committed", 1),
    Step(END, "the daemon wakes, commits mailbox entry, status and receipt, the client has it", 2),
)
RECEIPT: Final = Step("delivered", "the delivery is logged, nobody waits for it")
Life = Mapping[str, float]  # an instant's name -> epoch milliseconds


def measure(settings: Settings) -> Result:
    """Round trips with the floor's commits between them."""
    blocks: list[list[float]] = []
    asked: list[Asked] = []
    with BenchStage(settings.folder) as stage:
        stage.start()
        with stage.client() as client:
            ask_often(client, SESSION, _WARM_UP)
            for _ in range(settings.count(_BLOCKS, 1)):
                blocks.append(commit_times(settings.folder, _COMMITS))
                asked += ask_often(client, SESSION, settings.count(_PER_BLOCK, 5))
        stage.stop()
        known = instants(stage)
    lives = [{**known.get(one.message_id, {}), BEGIN: one.sent_at, END: one.sent_at + one.took} for one in asked]
    names = {BEGIN, RECEIPT.until, *(step.until for step in STEPS)}
    whole = [life for life in lives if names <= life.keys()]
    if len(whole) < len(asked) / 2:
        raise BenchFailed(f"of {len(asked)} messages only {len(whole)} have every instant: {lives[0]}")
    return _result(whole, blocks)


def instants(stage: BenchStage) -> dict[str, dict[str, float]]:
    """By message id: when what was committed, from the session's rows, the daemon's log and the runner's."""
    found: dict[str, dict[str, float]] = {}
    folder = SessionFolder(stage.data / "sessions" / ECHO / SESSION)
    for name, message_id, at in (*_from_rows(folder), *_from_logs(stage, folder.logs)):
        if at is not None:
            found.setdefault(message_id, {})[name] = at
    return found


def _from_rows(folder: SessionFolder) -> Iterator[tuple[str, str, float | None]]:
    with open_reader(folder.inbound_db) as host, open_reader(folder.outbound_db) as container:
        for row in host.all("SELECT id, timestamp FROM messages_in"):
            yield "accepting", row["id"], from_text(row["timestamp"])
        for row in container.all("SELECT in_reply_to, timestamp FROM messages_out"):
            yield "answered", row["in_reply_to"], from_text(row["timestamp"])


def _from_logs(stage: BenchStage, logs: Path) -> Iterator[tuple[str, str, float | None]]:
    for event, name, key in (("message_accepted", "accepted", "message"), ("message_delivered", "delivered", "in_reply_to")):  # fmt: skip
        for line in stage.events(event):
            yield name, line[key], from_text(line["timestamp"])
    names = {"turn_started": "claimed", "turn_ended": "finished"}
    for path in logs.glob("container.log*"):
        for text in path.read_text(encoding="utf-8").splitlines():
            line: dict[str, Any] = json.loads(text)
            for message_id in line.get("messages", ()) if line["event"] in names else ():
                yield names[line["event"]], message_id, from_text(line["timestamp"])


def means(lives: Sequence[Life]) -> list[float]:
    """The mean of each step in milliseconds, in the order of STEPS."""
    names = [BEGIN, *(step.until for step in STEPS)]
    return [fmean(life[until] - life[since] for life in lives) for since, until in pairwise(names)]


def _result(lives: Sequence[Life], blocks: list[list[float]]) -> Result:
    commit = spread([value for block in blocks for value in block]).p50
    figures = [_figure(step, value, commit) for step, value in zip(STEPS, means(lives), strict=True)]
    whole = fmean(life[END] - life[BEGIN] for life in lives)
    commits = sum(step.commits for step in STEPS)
    figures.append(Figure("the whole round trip", whole, "ms", commits * commit, None, f"{len(lives)} of them"))
    figures.append(_figure(RECEIPT, fmean(life[RECEIPT.until] - life[END] for life in lives), commit))
    return Result(tuple(figures), (_NOTE,), noisy=noise(blocks))


def _figure(step: Step, value: float, commit: float) -> Figure:
    text = f"{step.commits} commit{'s' if step.commits > 1 else ''}" if step.commits else ""
    return Figure(f"step: {step.what}", value, "ms", step.commits * commit or None, None, text)
