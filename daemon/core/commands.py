"""The operator's verbs: what each needs to know, its JSON form, and its route in the control API.

A verb says what is wanted and does nothing. `maintenance/daemon_executor.py` carries it out in a running daemon,
`maintenance/offline.py` on the files while no daemon runs. Add a verb here, to both executors, and to the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final

from daemon.core.errors import RequestRefusedError
from daemon.core.stale_plan import Scope, check_scope
from schema.ids import check_name, check_session

_MAX_BY: Final = 200
_MAX_ID: Final = 255
_MAX_REASON: Final = 1000
_MAX_TEXT: Final = 65_536
_MAX_CHECK: Final = 2000
_SESSION: Final = "/v1/sessions/{agent}/{session:path}/"


@dataclass(frozen=True, slots=True)
class Verb:
    """One request about one session. `by` and `reason` go into the history.

    Building one raises InvalidNameError or RequestRefusedError for values that no executor may see.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = MappingProxyType({"extra": "forbid", "strict": True})
    route: ClassVar[str]
    wait_s: ClassVar[float] = 60.0  # how long the answer may take beyond a moment

    agent: str
    session: str
    by: str = "operator"
    reason: str | None = None

    def __post_init__(self) -> None:
        """Check what came from outside."""
        check_name("agent", self.agent)
        check_session(self.session)
        _check_length("by", self.by, _MAX_BY)
        if self.reason is not None and len(self.reason) > _MAX_REASON:
            raise RequestRefusedError(f"reason is longer than {_MAX_REASON} characters.")

    def as_json(self) -> dict[str, Any]:
        """Return the request's body."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HostVerb:
    """One request about the whole installation, not about a session. `by` and `reason` are recorded with the change."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = MappingProxyType({"extra": "forbid", "strict": True})
    route: ClassVar[str]
    wait_s: ClassVar[float] = 0.0

    by: str = "operator"
    reason: str | None = None

    def __post_init__(self) -> None:
        """Check what came from outside."""
        _check_length("by", self.by, _MAX_BY)
        if self.reason is not None and len(self.reason) > _MAX_REASON:
            raise RequestRefusedError(f"reason is longer than {_MAX_REASON} characters.")

    def as_json(self) -> dict[str, Any]:
        """Return the request's body."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AddRoute(HostVerb):
    """Add a route: {name, where}. `keys` are those of a [[routes]] table."""

    route: ClassVar[str] = "/v1/routes/add"

    keys: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class RemoveRoute(HostVerb):
    """Remove a route that was added by command: {name}."""

    route: ClassVar[str] = "/v1/routes/remove"

    name: str = ""


@dataclass(frozen=True, slots=True)
class RefillBudget(HostVerb):
    """Let an agent's budget of today begin again: {name, day, turns, tokens, cost}, with what had been used."""

    route: ClassVar[str] = "/v1/budgets/refill"

    agent: str = ""

    def __post_init__(self) -> None:
        """Check the name, too."""
        HostVerb.__post_init__(self)
        check_name("agent", self.agent)


@dataclass(frozen=True, slots=True)
class UserVerb(HostVerb):
    """A verb about one user."""

    name: str = ""

    def __post_init__(self) -> None:
        """Check the name, too."""
        HostVerb.__post_init__(self)
        check_name("user", self.name)


@dataclass(frozen=True, slots=True)
class AddUser(UserVerb):
    """Add a user: {name}."""

    route: ClassVar[str] = "/v1/users/add"


@dataclass(frozen=True, slots=True)
class BindUser(UserVerb):
    """Bind a platform's id of a person to a user: {name, channel, sender}."""

    route: ClassVar[str] = "/v1/users/bind"

    channel: str = ""
    sender: str = ""


@dataclass(frozen=True, slots=True)
class SetRole(UserVerb):
    """Give a user a role for an agent (empty: all) in a scope, or take it (`role` None): {name, role, agent, scope}."""

    route: ClassVar[str] = "/v1/users/role"

    role: str | None = None
    agent: str = ""
    scope: str = "any"


@dataclass(frozen=True, slots=True)
class RevokeUser(UserVerb):
    """Refuse all that a user says from now on: {name, revoked}."""

    route: ClassVar[str] = "/v1/users/revoke"


@dataclass(frozen=True, slots=True)
class RestoreUser(UserVerb):
    """Take a revocation back: {name, revoked}."""

    route: ClassVar[str] = "/v1/users/restore"


@dataclass(frozen=True, slots=True)
class DecidePairing(HostVerb):
    """Let a stranger in, or not: {name, code, outcome, agent, scope}.

    `user`: who it is, None for a new user. `approver`: the user who decides; None for the operator of this host.
    """

    route: ClassVar[str] = "/v1/pairings/decide"

    code: str = ""
    approve: bool = False
    user: str | None = None
    approver: str | None = None


@dataclass(frozen=True, slots=True)
class RowVerb(Verb):
    """A verb about one message, answer or dead letter of the session. One transaction in the session's inbound.db."""

    id: str = ""

    def __post_init__(self) -> None:
        """Check the id, too."""
        Verb.__post_init__(self)
        _check_length("id", self.id, _MAX_ID)


@dataclass(frozen=True, slots=True)
class RequeueDead(RowVerb):
    """Send a dead letter on its way again: {id, kind: in|out, requeued_as}."""

    route: ClassVar[str] = "/v1/dead/requeue"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class DropDead(RowVerb):
    """Take a dead letter off the list: {id, kind}."""

    route: ClassVar[str] = "/v1/dead/drop"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class CancelMessage(RowVerb):
    """Cancel an unfinished message: {id, was, running}. A turn that works on it is asked to stop; `kill` ends its container."""

    route: ClassVar[str] = "/v1/messages/cancel"

    kill: bool = False


@dataclass(frozen=True, slots=True)
class RetryMessage(RowVerb):
    """Have a message tried now: {id, was, retried_as}."""

    route: ClassVar[str] = "/v1/messages/retry"


@dataclass(frozen=True, slots=True)
class RetryAnswer(RowVerb):
    """Try a failing answer now: {id, was, attempts}."""

    route: ClassVar[str] = "/v1/answers/retry"


@dataclass(frozen=True, slots=True)
class DropAnswer(RowVerb):
    """Give an answer up: {id, was, attempts}."""

    route: ClassVar[str] = "/v1/answers/drop"


@dataclass(frozen=True, slots=True)
class AnswerQuestion(RowVerb):
    """Answer an open question: {id, outcome, choice, text}. `answer` None: there will be no answer."""

    route: ClassVar[str] = "/v1/questions/answer"

    answer: str | None = None


@dataclass(frozen=True, slots=True)
class PutSchedule(RowVerb):
    """Add or change the schedule `id`: {key, was: added|changed|unchanged, next_at, state}. Makes the session if there is none.

    Instants are epoch milliseconds. `channel`, `place` and `thread` say where the answers go.
    `check` is a shell command in the container that decides whether the agent is woken.
    """

    route: ClassVar[str] = "/v1/schedules/put"
    wait_s: ClassVar[float] = 0.0

    text: str = ""
    at: int | None = None
    every_ms: int | None = None
    cron: str | None = None
    timezone: str = "UTC"
    until: int | None = None
    count: int | None = None
    catch_up: str = "skip"
    channel: str = "local"
    place: str = "cli"
    thread: str | None = None
    check: str | None = None

    def __post_init__(self) -> None:
        """Check the lengths, too; the times are checked against the clock when they are stored."""
        RowVerb.__post_init__(self)
        _check_length("text", self.text, _MAX_TEXT)
        if self.check is not None:
            _check_length("check", self.check, _MAX_CHECK)
        for name in ("cron", "timezone", "catch_up", "channel", "place", "thread"):
            value = getattr(self, name)
            if value is not None:
                _check_length(name, value, _MAX_ID)


@dataclass(frozen=True, slots=True)
class PauseSchedule(RowVerb):
    """Fire no occurrence of a schedule until it is resumed: {key, was}."""

    route: ClassVar[str] = "/v1/schedules/pause"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class ResumeSchedule(RowVerb):
    """Go on with a schedule's next occurrence: {key, was, next_at}."""

    route: ClassVar[str] = "/v1/schedules/resume"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class CancelSchedule(RowVerb):
    """Delete a schedule: {key, was}."""

    route: ClassVar[str] = "/v1/schedules/cancel"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class RunSchedule(RowVerb):
    """Send a schedule's message now, beside its occurrences: {key, message_id}."""

    route: ClassVar[str] = "/v1/schedules/run"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class StopSession(Verb):
    """Ask the session's container for a graceful end, without waiting: {stopping, incarnation}."""

    route: ClassVar[str] = f"{_SESSION}stop"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class KillSession(Verb):
    """Kill the session's container and wait for the confirmed exit: {killed, incarnation, exit_code}."""

    route: ClassVar[str] = f"{_SESSION}kill"
    wait_s: ClassVar[float] = 600.0


@dataclass(frozen=True, slots=True)
class ReleaseSession(Verb):
    """Take the session out of quarantine: {released, was}."""

    route: ClassVar[str] = f"{_SESSION}release"
    wait_s: ClassVar[float] = 0.0


@dataclass(frozen=True, slots=True)
class QuarantineSession(Verb):
    """Take the session out of service and kill its container: {quarantined, was, ending, noted}."""

    route: ClassVar[str] = "/v1/repairs/quarantine"


@dataclass(frozen=True, slots=True)
class ResetSession(Verb):
    """Kill the container, put out/ aside, release: {moved_to, released, was}. `discard`: also when that loses answers."""

    route: ClassVar[str] = "/v1/repairs/reset"
    wait_s: ClassVar[float] = 600.0

    discard: bool = False


@dataclass(frozen=True, slots=True)
class DeleteSession(Verb):
    """Delete the session for good: {deleted, deletion, lost, removed}. `force`: also when it has work."""

    route: ClassVar[str] = "/v1/repairs/delete"
    wait_s: ClassVar[float] = 120.0

    force: bool = False


@dataclass(frozen=True, slots=True)
class PreviewStale(Verb):
    """List the session's stale runs: {runs, left, running}. Changes nothing."""

    route: ClassVar[str] = "/v1/stale/preview"

    older_than_ms: int = 0
    max_runs: int = 0

    def __post_init__(self) -> None:
        """Check the limits as for a sweep that is applied."""
        Verb.__post_init__(self)
        check_scope(self.scope, apply=True)

    @property
    def scope(self) -> Scope:
        """The sweep's scope: this session, with the sweep's limits."""
        return Scope(session=(self.agent, self.session), older_than_ms=self.older_than_ms, max_runs=self.max_runs)


@dataclass(frozen=True, slots=True)
class ApplyStale(PreviewStale):
    """End the session's stale runs: the report of stale_sweep.Swept. `expected`: the runs that the preview named."""

    route: ClassVar[str] = "/v1/stale/apply"

    expected: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class UndoStale(Verb):
    """Put the backup of a sweep back: {agent, session, restored, before}. `backup` is the file's name."""

    route: ClassVar[str] = "/v1/stale/undo"

    backup: str = ""

    def __post_init__(self) -> None:
        """Check the backup's name, too."""
        Verb.__post_init__(self)
        _check_length("backup", self.backup, _MAX_ID)


AnyVerb = Verb | HostVerb

VERBS: Final[tuple[type[AnyVerb], ...]] = (
    RequeueDead,
    DropDead,
    CancelMessage,
    RetryMessage,
    RetryAnswer,
    DropAnswer,
    AnswerQuestion,
    PutSchedule,
    PauseSchedule,
    ResumeSchedule,
    CancelSchedule,
    RunSchedule,
    StopSession,
    KillSession,
    ReleaseSession,
    QuarantineSession,
    ResetSession,
    DeleteSession,
    PreviewStale,
    ApplyStale,
    UndoStale,
    AddRoute,
    RemoveRoute,
    RefillBudget,
    AddUser,
    BindUser,
    SetRole,
    RevokeUser,
    RestoreUser,
    DecidePairing,
)


def _check_length(name: str, value: str, longest: int) -> None:
    if not 0 < len(value) <= longest:
        raise RequestRefusedError(f"{name} must have between 1 and {longest} characters.")
