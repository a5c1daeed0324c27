"""Every operator verb does the same with the daemon up and down: one table, both executors, real session files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.core.agent_verbs import AddRoute, RefillBudget, RemoveRoute
from daemon.core.commands import VERBS
from daemon.core.errors import RuntimeUnavailableError
from daemon.core.message_verbs import (
    AnswerQuestion,
    CancelMessage,
    DropAnswer,
    DropDead,
    RequeueDead,
    RetryAnswer,
    RetryMessage,
)
from daemon.core.people_verbs import AddUser, BindUser, DecidePairing, RestoreUser, RevokeUser, SetRole
from daemon.core.schedule_verbs import CancelSchedule, PauseSchedule, PutSchedule, ResumeSchedule, RunSchedule
from daemon.core.session_key import SessionKey
from daemon.core.session_verbs import (
    ApplyStale,
    DeleteSession,
    KillSession,
    PreviewStale,
    QuarantineSession,
    ReleaseSession,
    ResetSession,
    StopSession,
    UndoStale,
)
from daemon.core.stale_plan import OLDER_THAN_MS
from daemon.core.verb import AnyVerb, Verb
from daemon.inspect.containers import RuntimeSeen
from daemon.maintenance.offline import OfflineExecutor, offline_executor
from daemon.store import host_messages, messages
from daemon.store.data_folder import DataFolder
from daemon.store.incarnations import IncarnationRow
from daemon.store.registry import Registry
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import change_status
from schema.errors import ClawbusError
from schema.ids import session_path
from schema.plain_file import ReadLimits
from schema.rows import Address, MessageStatus
from tests.support.bus_kit import AGENT, BusKit

KEY: Final = SessionKey(AGENT, "main")
FAR: Final = 10**13
WHO: Final = {"by": "ada", "reason": "a test"}
NOBODY: Final = RuntimeSeen(())
SILENT: Final = RuntimeSeen(None, "the runtime does not answer.")

ROUTE: Final = {"name": "kitchen", "channel": "local", "place": "kitchen", "agent": AGENT, "senders": "anyone"}


@dataclass(frozen=True)
class Case:
    """A verb, what it returns, and who is in the history of which row."""

    verb: AnyVerb
    result: dict[str, Any]
    event: tuple[str, str] | None = None


def of(verb: Callable[..., Verb], **more: Any) -> Verb:
    return verb(AGENT, "main", **WHO, **more)


CASES: Final = (
    Case(of(RequeueDead, id="dead"), {"id": "dead", "kind": "in", "requeued_as": "dead+r1"}, ("dead", "requeued")),
    Case(of(DropDead, id="dead"), {"id": "dead", "kind": "in"}, ("dead", "dropped")),
    Case(of(CancelMessage, id="later"), {"id": "later", "was": "pending", "running": False}, ("later", "cancelled")),
    Case(
        of(RetryMessage, id="later"),
        {"id": "later", "was": "pending", "retried_as": "later"},
        ("later", "retry_requested"),
    ),
    Case(of(RetryAnswer, id="failed:dead"), {"id": "failed:dead", "was": "retrying", "attempts": 1}),
    Case(of(DropAnswer, id="failed:dead"), {"id": "failed:dead", "was": "retrying", "attempts": 1}),
    Case(of(StopSession), {"stopping": False, "incarnation": None}),
    Case(of(KillSession), {"killed": False, "incarnation": None, "exit_code": None}),
    Case(of(ReleaseSession), {"released": False, "was": None}),
    Case(
        of(QuarantineSession),
        {"quarantined": True, "was": None, "ending": False, "noted": True},
        ("@session", "session_quarantined"),
    ),
    Case(of(ResetSession, discard=True), {"released": 0, "was": None}, ("@session", "session_reset")),
    Case(of(DeleteSession, force=True), {"deleted": True, "removed": True}),
    Case(
        of(PreviewStale, older_than_ms=OLDER_THAN_MS, max_runs=5),
        {"runs": [], "left": [], "running": []},
    ),
    Case(of(ApplyStale, older_than_ms=OLDER_THAN_MS, max_runs=5, expected=[]), {"swept": []}),
    Case(AddRoute(keys=ROUTE), {"name": "kitchen"}),
    Case(
        of(PutSchedule, id="daily", text="work", every_ms=86_400_000),
        {"key": "daily", "was": "added"},
        ("@session", "schedule_set"),
    ),
    Case(AddUser(name="ann"), {"name": "ann"}),
)
REFUSED: Final = (
    (of(RequeueDead, id="later"), "NOT_A_DEAD_LETTER"),
    (of(CancelMessage, id="nowhere"), "UNKNOWN_MESSAGE"),
    (of(CancelMessage, id="dead"), "MESSAGE_FINISHED"),
    (of(RetryAnswer, id="nowhere"), "UNKNOWN_MESSAGE"),
    (of(DeleteSession), "SESSION_UNFINISHED"),
    (of(UndoStale, backup="nothing"), "RESTORE_REFUSED"),
    (QuarantineSession(AGENT, "nobody"), "UNKNOWN_SESSION"),
    (AddRoute(keys={**ROUTE, "agent": "nobody"}), "ROUTE_REFUSED"),
    (AddRoute(keys={**ROUTE, "pattern": "("}), "ROUTE_REFUSED"),
    (of(AnswerQuestion, id="nowhere", answer="1"), "UNKNOWN_QUESTION"),
    (RemoveRoute(name="nowhere"), "UNKNOWN_ROUTE"),
    (of(PutSchedule, id="never", text="work", cron="0 0 30 2 *"), "SCHEDULE_INVALID"),
    (of(PutSchedule, id="k", text="work", every_ms=1000, channel="webhok"), "MESSAGE_INVALID"),
    (PutSchedule("nobody", "main", id="k", text="work", every_ms=1000), "UNKNOWN_AGENT"),
    (of(PauseSchedule, id="nowhere"), "UNKNOWN_SCHEDULE"),
    (of(ResumeSchedule, id="nowhere"), "UNKNOWN_SCHEDULE"),
    (of(CancelSchedule, id="nowhere"), "UNKNOWN_SCHEDULE"),
    (of(RunSchedule, id="nowhere"), "UNKNOWN_SCHEDULE"),
    (BindUser(name="nobody", channel="local", sender="x"), "UNKNOWN_USER"),
    (SetRole(name="nobody", role="owner"), "UNKNOWN_USER"),
    (RevokeUser(name="nobody"), "UNKNOWN_USER"),
    (RestoreUser(name="nobody"), "UNKNOWN_USER"),
    (DecidePairing(code="NOTTHERE", approve=True), "PAIRING_CLOSED"),
    (RefillBudget(agent="nobody"), "UNKNOWN_AGENT"),
)
EXECUTORS: Final = pytest.mark.parametrize("up", [True, False], ids=["daemon", "offline"])


async def prepare(kit: BusKit) -> None:
    """`dead` failed and its sender's notice keeps failing; `later` is for another day. No container runs."""
    async with kit.running():
        for name in ("dead", "later"):
            await kit.send(message_id=name, process_after=FAR)
    with files_of(kit).inbound() as db, db.transaction():
        change_status(db, "dead", MessageStatus.FAILED, "failed", kit.clock.now_ms())
        message = messages.find(db, "dead")
        assert message is not None
        host_messages.notify_sender(db, message, Address("fake", "room"), "FAILED", "sorry", kit.clock.now_ms())
    async with kit.running():
        kit.bus.delivery.poke(await kit.session())
        await kit.settle()
    with files_of(kit).inbound() as db, db.transaction():
        db.execute("DELETE FROM delivered")
        db.execute("UPDATE host_messages SET id = 'failed:dead'")
        db.execute(
            "INSERT OR REPLACE INTO delivery_attempts(message_out_id, seq, source, destination, state, attempts,"
            " next_attempt_at, first_at) SELECT id, seq, 'host', 'fake', 'retrying', 1, ?, 1 FROM host_messages",
            (FAR,),
        )


def files_of(kit: BusKit) -> SessionFiles:
    return SessionFiles(session_path(kit.root / "sessions", *KEY), ReadLimits())


def offline(kit: BusKit, work: Callable[[OfflineExecutor], Any], seen: RuntimeSeen = NOBODY) -> Any:
    with offline_executor(kit.config, kit.clock, recover=True, look=lambda *_: seen) as executor:
        return work(executor)


async def carry_out(kit: BusKit, verb: AnyVerb, *, up: bool) -> dict[str, Any]:
    if not up:
        return offline(kit, lambda executor: executor.execute(verb))
    refusal: ClawbusError | None = None
    done: dict[str, Any] = {}
    async with kit.running():
        try:
            done = await kit.operations.execute(verb)
        except ClawbusError as error:
            refusal = error  # raised below: a task group would wrap it
    if refusal is not None:
        raise refusal
    return done


@pytest.fixture
def kit(tmp_path: Path) -> BusKit:
    return BusKit(tmp_path / "data")


def test_every_verb_is_in_a_table() -> None:
    assert {type(case.verb) for case in CASES} | {type(verb) for verb, _ in REFUSED} == set(VERBS)


@pytest.mark.anyio
@EXECUTORS
@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.verb).__name__)
async def test_a_verb_does_the_same_with_the_daemon_up_and_down(kit: BusKit, case: Case, *, up: bool) -> None:
    await prepare(kit)
    done = await carry_out(kit, case.verb, up=up)
    assert case.result.items() <= done.items()
    if case.event is not None:
        with files_of(kit).inbound() as db:
            sql = "SELECT detail FROM message_history WHERE message_id = ? AND event = ?"
            (row,) = db.all(sql, case.event)
        assert '"by":"ada"' in row["detail"].replace(" ", "")


@pytest.mark.anyio
@EXECUTORS
@pytest.mark.parametrize(("verb", "code"), REFUSED, ids=lambda one: one if isinstance(one, str) else type(one).__name__)
async def test_a_refusal_is_the_same_with_the_daemon_up_and_down(
    kit: BusKit, verb: AnyVerb, code: str, *, up: bool
) -> None:
    await prepare(kit)
    with pytest.raises(ClawbusError) as refused:
        await carry_out(kit, verb, up=up)
    assert refused.value.code == code


def live(kit: BusKit) -> Registry:
    """Record a container of the session that has not ended, as a killed daemon leaves it."""
    with DataFolder.open(kit.root, kit.clock) as folder:
        registry = Registry(folder.central_db)
        registry.begin_incarnation(IncarnationRow("I1", KEY, "process", "f", "c1", kit.clock.now_ms()))
    return registry


@pytest.mark.anyio
@pytest.mark.parametrize(
    "verb",
    [of(StopSession), of(KillSession), of(QuarantineSession), of(ResetSession), of(CancelMessage, id="later")],
    ids=lambda one: type(one).__name__,
)
async def test_a_runtime_that_does_not_answer_refuses_before_anything_changes(kit: BusKit, verb: AnyVerb) -> None:
    await prepare(kit)
    registry = live(kit)
    with pytest.raises(RuntimeUnavailableError, match="cannot be determined: the runtime does not answer") as refused:
        offline(kit, lambda executor: executor.execute(verb), SILENT)
    assert "then repeat the command" in refused.value.hint
    row = registry.session(KEY)
    assert row is not None
    assert row.quarantine_reason is None
    with files_of(kit).inbound() as db:
        assert db.one("SELECT 1 FROM message_history WHERE event IN ('cancelled', 'session_quarantined')") is None


@pytest.mark.anyio
async def test_what_is_released_offline_was_quarantined_offline(kit: BusKit) -> None:
    await prepare(kit)
    offline(kit, lambda executor: executor.execute(of(QuarantineSession)))
    async with kit.running():
        assert (await kit.session()).quarantined == "by ada: a test"
    assert offline(kit, lambda executor: executor.execute(of(ReleaseSession)))["was"] == "by ada: a test"
    async with kit.running():
        assert (await kit.session()).quarantined is None


@pytest.mark.anyio
@EXECUTORS
@pytest.mark.parametrize(
    "verb", [of(QuarantineSession), of(ReleaseSession), of(KillSession), of(RetryMessage, id="m1")],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
async def test_a_session_that_a_crash_left_half_made_is_unknown_and_completed_by_its_first_message(
    kit: BusKit, verb: AnyVerb, *, up: bool
) -> None:
    """Registered, it would be quarantined for the loss of a file that it never had."""
    async with kit.running():
        pass
    inbox = files_of(kit).folder.inbox
    inbox.mkdir(parents=True)
    (inbox / "inbound.db.new").write_bytes(b"half a database")
    with pytest.raises(ClawbusError) as refused:
        await carry_out(kit, verb, up=up)
    assert refused.value.code == "UNKNOWN_SESSION"
    async with kit.running():
        await kit.send(message_id="m1")
        await kit.started()
        assert (await kit.session()).quarantined is None
