"""The loop in this process, over real files, with providers made for the occasion."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog

from container_runner.heartbeat import Heartbeat
from container_runner.loop import Identity, Runner
from container_runner.providers.protocol import Answer, DeclaredTimeout, OutMessage, Progress, Turn
from container_runner.shared.errors import AnswerInvalidError, ClaimLostError, CommandExitError, TurnDeferredError
from container_runner.store import Store
from container_runner.watch import InboundWatch
from schema.bell import ring
from schema.connect import open_owner
from schema.errors import SchemaTooNewError
from schema.migrate import Role
from tests.support.session_kit import SessionKit, eventually, quick

pytestmark = pytest.mark.anyio

Work = Callable[[Turn, Progress], Awaitable[Answer]]


class Scripted:
    """A provider that does what the test says and keeps the turns it saw."""

    def __init__(self, work: Work, *, accepts_follow_ups: bool = False, silence: DeclaredTimeout | None = None) -> None:
        self.accepts_follow_ups = accepts_follow_ups
        self.silence = silence
        self.turns: list[list[str]] = []
        self._work = work

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        self.turns.append([message.id for message in turn.messages])
        return await self._work(turn, progress)

    async def close(self) -> None:
        """Nothing outlives its turn."""


def say(text: str, to: str | None = None) -> Answer:
    return Answer(messages=(OutMessage({"text": text}, to=to),))


async def answer_ok(turn: Turn, progress: Progress) -> Answer:
    return say("ok")


def build(kit: SessionKit, provider: Scripted, events: list[dict[str, Any]] | None = None, **settings: Any) -> Runner:
    def keep(_: Any, __: str, event: Any) -> Any:
        if events is not None:
            events.append(dict(event))
        raise structlog.DropEvent

    log = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[keep], wrapper_class=structlog.make_filtering_bound_logger("debug")
    )
    options = quick(**settings)
    folder = kit.folder
    return Runner(
        options,
        Identity("a", "s", "I1"),
        store=Store(folder.inbox, folder.outbox, "I1", lambda: time.time_ns() // 1_000_000),
        provider=provider,
        heartbeat=Heartbeat(folder.outbox, log),
        watch=InboundWatch(folder.inbox, step_ms=options.watch_step_ms, poll_s=options.poll_s, log=log),
        log=log,
    )


@asynccontextmanager
async def running(runner: Runner) -> AsyncIterator[None]:
    """The runner at work; on leaving it is stopped and must come to its end."""
    async with anyio.create_task_group() as group:
        group.start_soon(runner.run)
        try:
            yield
        finally:
            runner.stop()


@pytest.fixture
def kit(tmp_path: Path) -> SessionKit:
    return SessionKit(tmp_path)


async def test_a_message_is_answered_and_acked(kit: SessionKit) -> None:
    async with running(build(kit, Scripted(answer_ok))):
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    kit.check()
    assert kit.contents() == [{"text": "ok"}]


def without_inotify(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise OSError("not on this system")

    monkeypatch.setitem(InboundWatch.__init__.__kwdefaults__ or {}, "open_events", none)


async def test_watchfiles_is_enough(kit: SessionKit, monkeypatch: pytest.MonkeyPatch) -> None:
    without_inotify(monkeypatch)
    events: list[dict[str, Any]] = []
    async with running(build(kit, Scripted(answer_ok), events, poll_s=3600.0)):
        await eventually(lambda: any(event["event"] == "watch_portable" for event in events))
        for name in ("m1", "m2", "m3"):
            kit.add(name)
            await eventually(lambda name=name: kit.acks().get(name) == "completed")
    kit.check()


async def test_the_poll_alone_is_enough(kit: SessionKit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("inotify watch limit reached")

    without_inotify(monkeypatch)
    monkeypatch.setattr("container_runner.watch.awatch", broken)
    events: list[dict[str, Any]] = []
    async with running(build(kit, Scripted(answer_ok), events)):
        await eventually(lambda: any(event["event"] == "watch_unavailable" for event in events))
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    kit.check()


async def test_a_file_event_is_enough(kit: SessionKit) -> None:
    kit.add("first")
    async with running(build(kit, Scripted(answer_ok), poll_s=3600.0)):
        await eventually(lambda: kit.acks() == {"first": "completed"})
        # The look after that turn may come before or after the next row: of several rows, one must wake it.
        for name in ("m1", "m2", "m3"):
            kit.add(name)
            await eventually(lambda name=name: kit.acks().get(name) == "completed")
    kit.check()


async def test_after_a_turn_that_took_everything_only_a_ring_leads_to_a_poll(
    kit: SessionKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls: list[bool] = []  # of each poll whether it claimed
    claim, second_came = Store.claim, anyio.Event()

    def counted(*args: Any, **named: Any) -> Any:
        batch = claim(*args, **named)
        polls.append(batch is not None)
        return batch

    async def work(turn: Turn, progress: Progress) -> Answer:
        if turn.messages[0].id == "with-one-behind-it":
            kit.add("behind-it")
            ring(kit.folder.inbox)
            await second_came.wait()
        return say("ok")

    events: list[dict[str, Any]] = []
    runner = build(kit, Scripted(work), events, poll_s=3600.0)
    poke, watch = InboundWatch.poke, runner._watch

    def poked(self: InboundWatch) -> None:
        poke(self)
        if kit.acks().get("with-one-behind-it") == "processing":
            second_came.set()

    async with running(runner):
        await eventually(lambda: watch.pokes > 0)
        ring(kit.folder.inbox)  # this host rings
        await eventually(lambda: watch.silent_since(watch.pokes))
        monkeypatch.setattr(Store, "claim", counted)
        for name in ("m1", "m2", "m3"):
            polls.clear()
            kit.add(name)
            ring(kit.folder.inbox)
            await eventually(lambda name=name: kit.acks().get(name) == "completed")
            await eventually(lambda: events[-1]["event"] == "turn_ended")
            await anyio.wait_all_tasks_blocked()
            assert polls[polls.index(True) :] == [True], name
        monkeypatch.setattr(InboundWatch, "poke", poked)
        kit.add("with-one-behind-it")
        ring(kit.folder.inbox)
        await eventually(lambda: kit.acks().get("behind-it") == "completed")
    kit.check()


async def test_what_a_claim_left_behind_is_claimed_without_a_ring(kit: SessionKit) -> None:
    for number in range(5):
        kit.add(f"m{number}")
    async with running(build(kit, Scripted(answer_ok), poll_s=3600.0, max_batch=2)):
        ring(kit.folder.inbox)
        await eventually(lambda: list(kit.acks().values()) == ["completed"] * 5)
    kit.check()


async def test_a_change_ends_one_wait_and_not_the_next(kit: SessionKit) -> None:
    watch = InboundWatch(kit.folder.inbox, step_ms=1, poll_s=3600.0, log=structlog.get_logger())
    ended: list[int] = []

    async def wait_twice() -> None:
        for number in range(2):
            await watch.wait()
            ended.append(number)

    watch.poke()  # before anybody waits: it is not lost
    async with anyio.create_task_group() as group:
        group.start_soon(wait_twice)
        await anyio.wait_all_tasks_blocked()
        assert ended == [0]
        watch.poke()
        await anyio.wait_all_tasks_blocked()
        assert ended == [0, 1]
        group.cancel_scope.cancel()


async def test_on_wake_is_for_the_first_poll_only(kit: SessionKit) -> None:
    kit.add("early", on_wake=1)
    provider = Scripted(answer_ok)
    async with running(build(kit, provider)):
        await eventually(lambda: kit.acks() == {"early": "completed"})
        kit.add("late", on_wake=1)
        kit.add("m1")
        await eventually(lambda: "m1" in kit.acks())
    assert provider.turns == [["early"], ["m1"]]


async def test_context_alone_starts_nothing_and_rides_along(kit: SessionKit) -> None:
    provider = Scripted(answer_ok)
    for number in range(12):
        kit.add(f"c{number}", trigger=0)
    async with running(build(kit, provider)):
        kit.add("m1")
        await eventually(lambda: "m1" in kit.acks())
    assert provider.turns == [[*(f"c{number}" for number in range(3, 12)), "m1"]]
    kit.check()


async def test_a_failure_and_a_crash_are_answers_and_the_loop_goes_on(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        match turn.messages[0].id:
            case "fails":
                raise CommandExitError("exit code 3", detail="Traceback")
            case "crashes":
                raise ZeroDivisionError("by nought")
            case _:
                return say("ok")

    events: list[dict[str, Any]] = []
    async with running(build(kit, Scripted(work), events)):
        for name in ("fails", "crashes", "works"):
            kit.add(name)
            await eventually(lambda name=name: kit.acks().get(name) in {"completed", "failed"})
    kit.check()
    assert kit.acks() == {"fails": "failed", "crashes": "failed", "works": "completed"}
    assert [content.get("error", {}).get("code") for content in kit.contents()] == [
        "COMMAND_EXIT",
        "PROVIDER_CRASHED",
        None,
    ]
    assert [row["in_reply_to"] for row in kit.out()] == ["fails", "crashes", "works"]
    assert next(event["detail"] for event in events if event["event"] == "turn_failed") == "Traceback"


SECRETS = ("sk-live-4711", "/srv/acme/prod.yaml", "receiver.example.org")


@pytest.mark.parametrize(
    "failure",
    [
        CommandExitError(f"exit code 1. Its last words: 401 for {SECRETS}"),
        RuntimeError(f"connect to {SECRETS}"),
        AnswerInvalidError(f"Line 1 of the answer quotes {SECRETS}"),
        FileNotFoundError(2, f"{SECRETS}"),
        ValueError(f"half a character \ud83d and a NUL \0 beside {SECRETS}"),
    ],
)
async def test_why_a_turn_failed_is_noted_for_the_operator_and_not_sent(kit: SessionKit, failure: Exception) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        raise failure

    kit.add("m1")
    async with running(build(kit, Scripted(work))):
        await eventually(lambda: kit.acks() == {"m1": "failed"})
    kit.check()
    (content,) = kit.contents()
    assert content["error"]["reference"] == "m1"
    assert not any(secret in json.dumps(content) for secret in SECRETS)
    (note,) = kit.notes()
    assert note["code"] == content["error"]["code"]
    assert note["incarnation"] == "I1"
    assert all(secret in note["message"] for secret in SECRETS)


async def test_the_note_of_a_former_failure_goes_when_the_turn_works(kit: SessionKit) -> None:
    kit.add("m1")
    with open_owner(kit.folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
        db.execute("INSERT INTO turn_notes VALUES ('m1', 'I0', '2026-11-21T00:00:00.000Z', 'COMMAND_EXIT', 'old')")
    async with running(build(kit, Scripted(answer_ok))):
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert kit.notes() == []


async def test_a_long_reason_is_cut(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        raise CommandExitError("x" * 100_000)

    kit.add("m1")
    async with running(build(kit, Scripted(work), error_detail="sender")):
        await eventually(lambda: kit.acks() == {"m1": "failed"})
    assert len(kit.notes()[0]["message"]) == 2000


async def test_a_runner_whose_container_is_used_up_ends_after_the_turn_and_claims_nothing_more(kit: SessionKit) -> None:
    full: list[str] = []

    async def work(turn: Turn, progress: Progress) -> Answer:
        full.append("/tmp")
        kit.add("m2")
        return say("ok")

    kit.add("m1")
    runner = build(kit, Scripted(work))
    runner._used_up = lambda: full[0] if full else None
    with anyio.fail_after(60):
        await runner.run()
    assert kit.acks() == {"m1": "completed"}


async def test_an_unknown_destination_is_dropped_while_the_valid_one_is_sent(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        return Answer(messages=(OutMessage({"text": "lost"}, to="stranger"), OutMessage({"text": "ok"})))

    kit.add("m1")
    events: list[dict[str, Any]] = []
    async with running(build(kit, Scripted(work), events)):
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert kit.contents() == [{"text": "ok"}]
    assert [event["destination"] for event in events if event["event"] == "output_dropped"] == ["stranger"]


async def test_an_answer_of_which_nothing_is_left_is_a_failure(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        return say("lost", to="stranger")

    kit.add("m1")
    async with running(build(kit, Scripted(work))):
        await eventually(lambda: kit.acks() == {"m1": "failed"})
    assert kit.contents()[0]["error"]["code"] == "UNKNOWN_DESTINATION"


async def test_a_row_that_the_host_would_not_read_is_a_failure(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        return say("\x01" * 1000)  # six times that as JSON

    kit.add("m1")
    async with running(build(kit, Scripted(work), max_answer_bytes=2000)):
        await eventually(lambda: kit.acks() == {"m1": "failed"})
    assert kit.contents()[0]["error"]["code"] == "ANSWER_TOO_LARGE"


async def test_follow_ups_are_pushed_and_acked_with_the_same_turn(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        more = await progress.follow_ups()
        return say(f"answered with {more[0].id}")

    kit.add("m1")
    provider = Scripted(work, accepts_follow_ups=True)
    async with running(build(kit, provider)):
        await eventually(lambda: provider.turns == [["m1"]])
        kit.add("c2", trigger=0)
        kit.add("m3")
        await eventually(lambda: "completed" in kit.acks().values())
        assert kit.acks() == {"m1": "completed", "c2": "completed", "m3": "completed"}
    kit.check()
    assert kit.contents()[0]["answers"] == ["m1", "m3"]
    assert kit.out()[0]["in_reply_to"] == "m3"


async def test_a_follow_up_that_was_not_taken_is_the_next_turn(kit: SessionKit) -> None:
    release = anyio.Event()

    async def work(turn: Turn, progress: Progress) -> Answer:
        if turn.messages[0].id == "m1":
            await release.wait()
        return say("ok")

    kit.add("m1")
    provider = Scripted(work, accepts_follow_ups=True)
    async with running(build(kit, provider)):
        await eventually(lambda: provider.turns == [["m1"]])
        kit.add("m2")
        await eventually(lambda: kit.acks() == {"m1": "processing", "m2": "processing"})
        release.set()
        await eventually(lambda: kit.acks() == {"m1": "completed", "m2": "completed"})
    assert provider.turns == [["m1"], ["m2"]]
    kit.check()


async def test_a_provider_without_follow_ups_leaves_them_unclaimed(
    kit: SessionKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = anyio.Event()
    looks: list[str] = []
    original = Store.claim

    def claim(self: Store, *args: Any, **kwargs: Any) -> Any:
        looks.append("in mid-turn" if provider.turns and not release.is_set() else "between turns")
        return original(self, *args, **kwargs)

    async def work(turn: Turn, progress: Progress) -> Answer:
        await release.wait()
        return say("ok")

    monkeypatch.setattr(Store, "claim", claim)
    kit.add("m1")
    provider = Scripted(work)
    runner = build(kit, provider, poll_s=0.001)
    async with running(runner):
        await eventually(lambda: provider.turns == [["m1"]])
        kit.add("m2")
        # The file event has come, and nobody was waiting for it.
        await eventually(runner._watch._changed.is_set)
        release.set()
        await eventually(lambda: kit.acks() == {"m1": "completed", "m2": "completed"})
    assert "in mid-turn" not in looks
    assert provider.turns == [["m1"], ["m2"]]


async def test_a_tool_is_seen_in_flight_and_gone_after(kit: SessionKit) -> None:
    steps = [anyio.Event() for _ in range(3)]

    async def work(turn: Turn, progress: Progress) -> Answer:
        await steps[0].wait()
        await progress.tool_started("Bash", 7200)
        await steps[1].wait()
        await progress.tool_ended()
        await steps[2].wait()
        return say("ok")

    def declared() -> tuple[Any, Any]:
        tool = kit.tool()
        return tool.get("current_tool"), tool.get("tool_declared_timeout_ms")

    kit.add("m1")
    async with running(build(kit, Scripted(work, silence=DeclaredTimeout("command", 600)))):
        for step, expected in zip(
            steps, [("command", 600_000), ("Bash", 7_200_000), ("command", 600_000)], strict=True
        ):
            await eventually(lambda expected=expected: declared() == expected)
            step.set()
        await eventually(lambda: kit.acks() == {"m1": "completed"})
        assert declared() == (None, None)


async def test_the_heartbeat_is_progress_and_not_a_timer(kit: SessionKit) -> None:
    go = anyio.Event()

    async def work(turn: Turn, progress: Progress) -> Answer:
        await go.wait()
        progress.event()
        return say("ok")

    provider = Scripted(work)
    runner = build(kit, provider, poll_s=0.001)
    async with running(runner):
        await eventually(kit.folder.outbound_db.exists)
        assert not kit.heartbeat.exists(), "a runner that waits makes no progress"
        kit.add("m1")
        await eventually(lambda: provider.turns == [["m1"]])
        began = kit.heartbeat.stat().st_mtime_ns
        assert began // 1_000_000 <= kit.claimed_at("m1"), "to begin is no progress: it may still be claim-stuck"
        await anyio.wait_all_tasks_blocked()
        assert kit.heartbeat.stat().st_mtime_ns == began
        go.set()
        await eventually(lambda: kit.heartbeat.stat().st_mtime_ns > began)


async def test_a_heartbeat_is_not_written_through_a_link(kit: SessionKit, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("x")
    before = target.stat().st_mtime_ns
    kit.heartbeat.symlink_to(target)
    kit.add("m1")
    async with running(build(kit, Scripted(answer_ok))):
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert target.stat().st_mtime_ns == before


async def test_stopping_lets_the_turn_finish_within_the_grace(kit: SessionKit) -> None:
    release = anyio.Event()

    async def work(turn: Turn, progress: Progress) -> Answer:
        await release.wait()
        return say("just in time")

    kit.add("m1")
    provider = Scripted(work)
    runner = build(kit, provider, grace_s=30.0)
    async with running(runner):
        await eventually(lambda: provider.turns == [["m1"]])
        runner.stop()
        kit.add("m2")
        release.set()
    assert kit.acks() == {"m1": "completed"}, "nothing is claimed after the signal"
    kit.check()


async def test_after_the_grace_claims_are_given_back(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        await anyio.sleep_forever()
        return say("never")

    kit.add("m1")
    provider = Scripted(work, silence=DeclaredTimeout("command", 600))
    runner = build(kit, provider, grace_s=0.0)
    async with running(runner):
        await eventually(lambda: provider.turns == [["m1"]])
    assert kit.acks() == {}
    assert kit.out() == []
    assert kit.tool()["current_tool"] is None


async def test_an_answer_waits_for_the_file_to_take_it(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        with kit.runner_file() as db, db.transaction():
            db.execute("CREATE TRIGGER full BEFORE INSERT ON messages_out BEGIN SELECT raise(ABORT, 'disk full'); END")
        return say("patient")

    kit.add("m1")
    events: list[dict[str, Any]] = []
    provider = Scripted(work)
    async with running(build(kit, provider, events)):
        await eventually(lambda: any(event["event"] == "commit_failed" for event in events))
        assert kit.acks() == {"m1": "processing"}
        with kit.runner_file() as db, db.transaction():
            db.execute("DROP TRIGGER full")
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert kit.contents() == [{"text": "patient"}]
    assert provider.turns == [["m1"]], "the turn is not run again"


async def test_a_commit_that_cannot_be_made_ends_with_the_grace(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        with kit.runner_file() as db, db.transaction():
            db.execute("CREATE TRIGGER full BEFORE INSERT ON messages_out BEGIN SELECT raise(ABORT, 'disk full'); END")
        return say("never")

    kit.add("m1")
    events: list[dict[str, Any]] = []
    async with running(build(kit, Scripted(work), events, grace_s=0.05)):
        await eventually(lambda: any(event["event"] == "commit_failed" for event in events))
    assert kit.acks() == {}
    assert kit.out() == []


async def test_an_unreadable_inbound_is_waited_out_quietly(kit: SessionKit) -> None:
    kit.folder.inbound_db.unlink()
    events: list[dict[str, Any]] = []
    async with running(build(kit, Scripted(answer_ok), events, poll_s=0.01)):
        await eventually(lambda: sum(event["event"] == "poll_failed" for event in events) > 3)
        kit.add("m1", on_wake=1)
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert {event["code"] for event in events if event["event"] == "poll_failed"} == {"INBOUND_UNREADABLE"}


async def test_a_newer_file_ends_the_runner(kit: SessionKit) -> None:
    with kit.runner_file() as db:
        db.execute("PRAGMA user_version=999")
    with pytest.raises(SchemaTooNewError):
        await build(kit, Scripted(answer_ok)).run()


async def test_a_superseded_runner_ends_without_an_answer(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        younger = Store(kit.folder.inbox, kit.folder.outbox, "I2", lambda: time.time_ns() // 1_000_000)
        younger.start()
        younger.claim(10, first_poll=True)
        return say("too late")

    kit.add("m1")
    with pytest.raises(ClaimLostError):
        await build(kit, Scripted(work)).run()
    assert kit.out() == []
    assert kit.claimants() == {"m1": "I2"}


# --- one bad message among several -------------------------------------------------------------------------------------


async def fails_on_poison(turn: Turn, progress: Progress) -> Answer:
    if any(message.id == "poison" for message in turn.messages):
        raise CommandExitError("The program ended with exit code 1.")
    return say("ok")


@pytest.mark.parametrize("restarts", [False, True])
async def test_only_the_bad_message_of_a_turn_fails(kit: SessionKit, restarts: bool) -> None:
    """Also when the runner forgets in between what it has seen: the next turn is split as the first one was."""
    names = ["m1", "m2", "poison", "m4", "m5"]
    for name in names:
        kit.add(name)
    provider, events = Scripted(fails_on_poison), list[dict[str, Any]]()
    if restarts:
        runner = build(kit, provider, events)
        async with running(runner):
            await eventually(lambda: any(event["event"] == "turn_split" for event in events))
    async with running(build(kit, provider, events)):
        await eventually(lambda: len(kit.acks()) == 5 and "processing" not in kit.acks().values())
    assert kit.acks() == {name: "failed" if name == "poison" else "completed" for name in names}
    assert provider.turns[0] == names
    assert provider.turns[-3:] == [["poison"], ["m4"], ["m5"]]
    failures = [content for content in kit.contents() if "error" in content]
    assert len(failures) == 1
    assert [row["in_reply_to"] for row in kit.out()] == names, "one answer each, in order"
    kit.check()


async def test_follow_ups_of_a_failed_turn_are_tried_alone_too(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        if turn.messages[0].id == "m1" and len(provider.turns) == 1:
            kit.add("poison")
            await progress.follow_ups()
            raise CommandExitError("The program ended with exit code 1.")
        return await fails_on_poison(turn, progress)

    provider = Scripted(work, accepts_follow_ups=True)
    async with running(build(kit, provider)):
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "completed", "poison": "failed"})
    assert provider.turns == [["m1"], ["m1"], ["poison"]]
    kit.check()


async def test_nothing_joins_a_turn_of_what_is_tried_alone_nor_the_other_way_round(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        if turn.messages[0].id in ("retried", "fresh"):
            if turn.messages[0].id == "retried":
                kit.add("joins")
            else:
                kit.add("second retried", tries=1)
            with anyio.move_on_after(0.3):
                await progress.follow_ups()
        return say("ok")

    provider = Scripted(work, accepts_follow_ups=True)
    kit.add("retried", tries=1)
    async with running(build(kit, provider)):
        await eventually(lambda: kit.acks().get("joins") == "completed")
        kit.add("fresh")
        await eventually(lambda: kit.acks().get("second retried") == "completed")
    assert provider.turns == [["retried"], ["joins"], ["fresh"], ["second retried"]]


async def test_context_rides_along_with_the_first_that_is_tried_alone(kit: SessionKit) -> None:
    kit.add("c", trigger=0)
    for name in ("m1", "poison"):
        kit.add(name)
    provider = Scripted(fails_on_poison)
    async with running(build(kit, provider)):
        await eventually(lambda: kit.acks() == {"c": "completed", "m1": "completed", "poison": "failed"})
    assert provider.turns == [["c", "m1", "poison"], ["c", "m1"], ["poison"]]


async def test_an_agent_may_say_later(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        if len(provider.turns) == 1:
            raise TurnDeferredError("429 Too Many Requests", after_s=0.0)
        return say("ok")

    provider, events = Scripted(work), list[dict[str, Any]]()
    async with running(build(kit, provider, events)):
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "later"})
        kit.change("UPDATE messages_in SET deferrals = 1 WHERE id = 'm1'")
        await eventually(lambda: kit.acks() == {"m1": "completed"})
    assert kit.contents() == [{"text": "ok"}], "nothing was sent for the first turn"
    deferred = next(event for event in events if event["event"] == "turn_deferred")
    assert (deferred["reason"], deferred["after_s"]) == ("429 Too Many Requests", 0.0)


async def test_a_host_that_knows_no_later_gets_a_failure_that_says_so(kit: SessionKit) -> None:
    async def work(turn: Turn, progress: Progress) -> Answer:
        raise TurnDeferredError("busy")

    kit.change("ALTER TABLE messages_in DROP COLUMN deferrals")
    async with running(build(kit, Scripted(work))):
        kit.add("m1")
        await eventually(lambda: kit.acks() == {"m1": "failed"})
    assert kit.contents()[0]["error"]["code"] == "TURN_FAILED"


async def test_the_state_of_a_session_does_not_grow_without_end(
    kit: SessionKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that kept a key for each message filled outbound.db, until the session was put into quarantine."""
    monkeypatch.setattr("container_runner.turn_end.MAX_STATE_BYTES", 25)

    async def keeps(turn: Turn, progress: Progress) -> Answer:
        (message,) = turn.messages
        key = message.id
        # The last one removes the first one's key, so that there is room again.
        more = {"m1": None} if key == "m4" else {}
        return Answer(messages=(OutMessage({"text": "ok"}),), state={key: "0123456789", **more})

    async with running(build(kit, Scripted(keeps))):
        for name, status in (("m1", "completed"), ("m2", "completed"), ("m3", "failed"), ("m4", "completed")):
            kit.add(name)
            await eventually(lambda name=name, status=status: kit.acks().get(name) == status)
    kit.check()
    assert [one.get("error", {}).get("code") for one in kit.contents()] == [None, None, "ANSWER_TOO_LARGE", None]
