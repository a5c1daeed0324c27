"""Which slot serves and how a deploy stands: the records, and their JSON in `deploy/state.json`. Pure.

`slot_steps.py` decides what may follow, `bake.py` whether a new release does harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from schema.frozen import frozen

BLUE: Final = "blue"
GREEN: Final = "green"
SLOTS: Final = (BLUE, GREEN)
GATES: Final = ("preflight", "warm", "callback_probe", "drain", "cutover", "bake", "rollback")
FAILURE_ACTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "preflight": "refuse; nothing was started",
        "warm": "block the cutover; the standby stays",
        "callback_probe": "block the release",
        "drain": "hold: the serving daemon takes new work again",
        "cutover": "roll back",
        "bake": "roll back",
        "rollback": "an operator decides",
    }
)
Status = Literal["pending", "running", "pass", "fail", "skipped"]
DEPLOY_STATES: Final = ("running", "passed", "failed", "aborted", "rolled_back", "unhealthy")
UNKNOWN: Final = "unknown"  # the result for a standing condition that could not be checked
STATE_FILE: Final = "deploy/state.json"  # in the data folder
_HISTORY: Final = frozenset({"id", "from", "to", "state", "at", "reason"})
KEPT: Final = 20  # finished deploys that the state keeps


@frozen
class Gate:
    """One gate of one deploy. Times are epoch milliseconds."""

    name: str
    status: Status = "pending"
    since: int | None = None
    ended: int | None = None
    measured: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limit: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""


@frozen
class Deploy:
    """One deploy. `state`: running, passed, failed or aborted (both before the cutover), rolled_back, unhealthy (no way back)."""

    id: str
    from_slot: str
    from_release: str
    to_slot: str
    to_release: str
    started_at: int
    gates: tuple[Gate, ...]
    state: str = "running"
    ended_at: int | None = None
    reason: str = ""
    no_rollback: bool = False
    boot: str = ""  # the machine's boot in which the new slot's daemon was started last
    stopped: bool = False  # the baking daemon was asked to stop, so its next start is not a breach
    reported: bool = False  # the trace of the whole deploy was handed to the telemetry

    def gate(self, name: str) -> Gate:
        """Return one gate."""
        return next(one for one in self.gates if one.name == name)

    def with_gate(self, name: str, **changes: Any) -> Deploy:
        """Return the deploy with one gate changed."""
        return replace(self, gates=tuple(replace(one, **changes) if one.name == name else one for one in self.gates))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state != "running"

    @property
    def is_cut_over(self) -> bool:
        """Whether the new slot was made the serving one."""
        return self.gate("cutover").since is not None


@frozen
class SlotState:
    """What deploy/state.json holds. `cooldown` is {release: epoch milliseconds until which it is refused}."""

    epoch: int = 0
    serving: str | None = None
    release: str | None = None
    deploy: Deploy | None = None
    cooldown: Mapping[str, int] = field(default_factory=dict[str, int])
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def active(self) -> Deploy | None:
        """The deploy under way, or None."""
        return self.deploy if self.deploy is not None and not self.deploy.is_over else None


def deploy_on_record(state: SlotState, identity: str) -> Deploy | None:
    """Return an earlier deploy as the history has it, without its gates; None where that has forgotten it."""
    line = next((one for one in state.history if one["id"] == identity), None)
    if line is None:
        return None
    return Deploy(
        identity, "", line["from"], "", line["to"], line["at"], (),
        state=line["state"], ended_at=line["at"], reason=line["reason"],
    )  # fmt: skip


def as_json(state: SlotState) -> dict[str, Any]:
    """Return the content of state.json."""
    return asdict(state)


def from_json(found: Mapping[str, Any]) -> SlotState:
    """Return the state. Raise TypeError, ValueError or LookupError for an invalid one.

    Fields that this release does not know are left out: after a rollback it reads what a later one wrote.
    """
    values = _known(SlotState, found)
    if found and not {"epoch", "serving"} <= values.keys():
        raise LookupError("it names neither epoch nor slot")
    if values.get("deploy") is not None:
        values["deploy"] = _deploy_from(values["deploy"])
    values["history"] = tuple(values.get("history", ()))
    state = SlotState(**values)
    if state.serving not in (None, *SLOTS) or type(state.epoch) is not int:
        raise ValueError("the serving slot or the epoch is invalid")
    if type(state.release) not in (str, type(None)):
        raise ValueError("the release is invalid")
    if not all(type(until) is int for until in dict(state.cooldown).values()):
        raise ValueError("a cooldown is invalid")
    for line in state.history:
        if not dict(line).keys() >= _HISTORY:
            raise LookupError("a line of its history is incomplete")
    return state


def _deploy_from(found: Mapping[str, Any]) -> Deploy:
    """Return a deploy with every gate. Raise as `from_json` does."""
    raw = _known(Deploy, found)
    raw["gates"] = tuple(Gate(**_known(Gate, one)) for one in raw["gates"])
    deploy = Deploy(**raw)
    if not {one.name for one in deploy.gates} >= set(GATES):  # a later release may have more
        raise LookupError("its deploy has not every gate")
    if {deploy.from_slot, deploy.to_slot} != set(SLOTS):
        raise ValueError("its deploy names other slots")
    words = (deploy.id, deploy.from_release, deploy.to_release, deploy.state, deploy.reason)
    if any(type(one) is not str for one in words) or type(deploy.started_at) is not int:
        raise ValueError("its deploy is invalid")
    return deploy


def _known(record: type[SlotState | Deploy | Gate], found: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(record)}
    return {name: value for name, value in dict(found).items() if name in names}


def other(slot: str) -> str:
    """Return the other slot."""
    return GREEN if slot == BLUE else BLUE
