"""One host with armed releases, on which deploys are lived through with deaths, and what must hold after each."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self

from daemon.core.errors import DaemonDownError, DaemonSilentError, RemoteError
from daemon.core.slots import SlotState, other
from daemon.store.folder_lock import live_holder
from daemon.store.registry import Registry
from tests.support.daemon import eventually
from tests.support.deploy_points import FILE, Death, Trials, armed
from tests.support.slot_host import PATIENT, SlotHost
from tests.support.slot_load import Load, is_taken

_OVER_S: Final = 240.0  # only ends a hang
AGENTS: Final = """
[agents.echo]
provider = "echo"
max_batch = 1
[agents.slow]
command = ["/bin/sh", "-c", "sleep 3; echo done"]
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """What happens to a deploy: the operator's verb and at which gate's beginning, or deaths; and how it then ends."""

    state: str
    verb: str = ""
    gate: str = ""
    deaths: tuple[Death, ...] = ()


KINDS: Final[Mapping[str, Kind]] = MappingProxyType({
    "passes": Kind("passed"),
    "is taken back": Kind("rolled_back", "rollback", "bake"),
    "is aborted": Kind("aborted", "abort", "warm"),
    "its new daemon dies": Kind("rolled_back", deaths=(Death("new bake.running:after", "new"),)),
    "its new daemon hangs": Kind("rolled_back", "hang", "bake"),
})  # fmt: skip


# The verdict of `verify-runtime` and its exit code for each end of a deploy.
_VERDICTS: Final[Mapping[str, tuple[str, int]]] = MappingProxyType({
    "passed": ("pass", 0), "aborted": ("pass", 0), "failed": ("fail", 1), "rolled_back": ("rolled_back", 1),
})  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What one deploy was and became. `passed` are its points, `problems` what must not be."""

    kind: str
    deaths: Sequence[Death]
    passed: list[str] = field(default_factory=list[str])
    state: str | None = None  # None: no deploy began
    fired: int = 0
    problems: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        return f"{self.kind}, {' then '.join(map(str, self.deaths)) or 'nobody killed'}: {self.state}"


class Rig:
    """One host with three armed releases; every deploy goes to the one that neither slot runs."""

    def __init__(self) -> None:
        self.host = SlotHost(AGENTS, {**PATIENT, "bake_s": 2.5})
        self.trials = Trials(self.host.root / "points")
        self.releases = [self.host.variant(armed(self.trials.folder, name), FILE) for name in "abc"]
        self.host.first = self.releases[0]
        self.host.bus.command = str(self.releases[0] / "bin" / "clawbus")
        self.number = 0

    def __enter__(self) -> Self:
        try:
            self.host.begin()
        except BaseException:
            self.host.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.host.close()

    def live(self, kind: str, deaths: Sequence[Death] = ()) -> Outcome:
        """One deploy under load, and what must hold afterwards."""
        self.number += 1
        host, way = self.host, KINDS[kind]
        host.ready()
        before, cursor = host.state(), self._cursor()
        assert before.serving is not None
        turn = f"turn-{self.number}"
        eventually("the turn is taken", lambda: is_taken(host, turn, agent="slow", session="turn"), 120)
        outcome = Outcome(kind, [*way.deaths, *deaths])
        self.trials.begin(before.serving, other(before.serving), outcome.deaths)
        with Load(host, 2, f"{self.number}-") as load:
            tool = host.bus.begin_cli("deploy", "start", self._target())
            state = self._until_over(way, before, tool)
            tool.communicate(timeout=_OVER_S)
            host.ready()
        eventually("on record", lambda: (d := host.state().deploy) is None or d.reported, 120)
        outcome.fired, outcome.passed = self.trials.fired(), self.trials.end()
        outcome.state = state.deploy.state if state.deploy is not None and began(before, state) else None
        host.bus.answer(turn, agent="slow", session="turn", wait_s=120)
        load.check(cursor)
        outcome.problems = [f"{outcome}: {one}" for one in (*self._slots(before, outcome), *self._told(turn))]
        return outcome

    def _target(self) -> str:
        """Return a release that neither slot points at."""
        linked = set(self.host.releases().slots().values())
        return next(one.name for one in self.releases if one.name not in linked)

    def another(self) -> Iterator[str]:
        """Begin the next deploy; yield what keeps it from passing."""
        self.host.ready()
        before = self.host.state()
        said = self.host.bus.cli("deploy", "start", self._target(), timeout_s=_OVER_S)
        state = self.host.state()
        if not said.ok or not began(before, state) or state.deploy is None or state.deploy.state != "passed":
            yield f"the next deploy did not pass: {said.envelope} {state.deploy}"

    def _cursor(self) -> int:
        entries = self.host.bus.entries()
        return int(entries[-1]["cursor"]) if entries else 0

    def _until_over(self, way: Kind, before: SlotState, tool: subprocess.Popen[str]) -> SlotState:
        """Wait until the deploy is over, or cannot begin any more; carry out the operator's verb once."""
        asked = not way.verb

        def over() -> SlotState | None:
            nonlocal asked
            ended = tool.poll() is not None  # before the look: what it asked for may have happened since
            state = self.host.state()
            if not began(before, state):
                return state if ended and not self.trials.is_passed("old begun:before") else None
            assert state.deploy is not None
            if not asked and state.deploy.gate(way.gate).status == "running":
                asked = self._ask(way.verb, state.deploy.to_slot)
            return state if state.deploy.is_over else None

        return eventually("over", over, _OVER_S)

    def _ask(self, verb: str, slot: str) -> bool:
        if verb == "hang":
            self.host.stop(slot)
            return True
        with contextlib.suppress(DaemonDownError, DaemonSilentError, RemoteError), self.host.bus.client() as client:
            client.deploy(verb, {"by": "a test"})
            return True
        return False

    def _slots(self, before: SlotState, outcome: Outcome) -> Iterator[str]:
        """Yield what is wrong with who serves."""
        host, state = self.host, self.host.state()
        moved = outcome.state == "passed"
        assert state.serving is not None
        if (state.serving != before.serving) != moved:
            yield f"slot {state.serving} serves"
        if moved == (state.release == before.release):
            yield f"release {state.release} serves"
        holder = live_holder(host.bus.data)
        if holder is None or holder.pid != host.pid(state.serving):
            yield f"{holder} holds the folder, and slot {state.serving} is process {host.pid(state.serving)}"
        standby = host.wait_standby(other(state.serving))
        if standby["pid"] != host.pid(other(state.serving)):
            yield f"the standby is {standby}"
        epoch = Registry(host.bus.data / "central.db").last_epoch()
        if epoch != state.epoch:
            yield f"epoch {epoch} of claims, {state.epoch} of slots"

    def _told(self, turn: str) -> Iterator[str]:
        """Yield what `verify-runtime` says that is not so, and what became of the turn that was under way."""
        state, said = self.host.state(), self.host.bus.cli("deploy", "verify-runtime", timeout_s=_OVER_S)
        found = said.envelope["result"]
        word, code = _VERDICTS[state.deploy.state if state.deploy is not None else "passed"]
        if (found["verdict"], said.code) != (word, code):
            yield f"verify-runtime: {found['verdict']} ({said.code}) instead of {word} ({code})"
        serving = {"slot": state.serving, "release": state.release, "epoch": state.epoch}
        if found["serving"] != serving:
            yield f"verify-runtime: {found['serving']} serves"
        if [one["status"] for one in found["standing"]] != ["pass"] * len(found["standing"]):
            yield f"verify-runtime: {found['standing']}"
        gates = [(one.name, one.status) for one in state.deploy.gates] if state.deploy is not None else []
        if [(one["gate"], one["status"]) for one in found["gates"]] != gates:
            yield f"verify-runtime: {found['gates']}"
        tried = self.host.bus.rows("slow", "turn", f"SELECT outcome FROM attempts WHERE message_id = '{turn}'")
        if [one["outcome"] for one in tried] != ["completed"]:
            yield f"the turn was tried {tried}"


def began(before: SlotState, state: SlotState) -> bool:
    """Whether a deploy is on record that was not before."""
    return state.deploy is not None and (before.deploy is None or state.deploy.id != before.deploy.id)
