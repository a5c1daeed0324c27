"""Repairs of dead letters on real session files: what changes, what stays, what is refused, what is told afterwards."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.config.models import Delivery
from daemon.core.delivery_plan import ChannelRules, DeadLetterDecision, Send
from daemon.core.errors import NotDeadLetterError, RowGoneError, UnknownMessageError
from daemon.engine.dead_letters import drop_one, requeue
from daemon.engine.delivery_context import DeliveryContext
from daemon.engine.delivery_steps import collect
from daemon.engine.hand_over import Outcome
from daemon.engine.outcome_steps import record_outcomes
from daemon.inspect.dead_reading import Wanted, in_order_of_arrival, read_dead_letter, read_dead_letters
from daemon.inspect.queues import read_queues
from daemon.store import host_messages, messages
from daemon.store.dead_letters import Operator
from daemon.store.session_files import SessionFiles
from daemon.store.transitions import change_status
from schema.connect import open_owner
from schema.handles import Writer
from schema.instants import to_text
from schema.migrate import Role
from schema.plain_file import ReadLimits
from schema.rows import Address, MessageIn, MessageStatus
from tests.support.clock import MovedClock
from tests.support.invariants import check_session

NOW = 1_763_000_000_000
HOME = Address("webhook", "hook")
WHO = Operator("ada", "it is up again")
RETRY_FOR_S = 60
MEANS = DeliveryContext(
    channels={"webhook": ChannelRules(deduplicates=False, hold_in_doubt=True)},
    config=Delivery(retry_for_s=RETRY_FOR_S, retry_base_s=1),
    max_content_bytes=2**20,
    held=frozenset(),
    under_way=frozenset(),
    jitter=0.5,
)


@dataclass
class World:
    """One session whose agent has answered; `at` is the next step's time."""

    files: SessionFiles
    at: int = NOW

    def write(self, work: Callable[[Writer], object]) -> None:
        with self.files.inbound() as db, db.transaction():
            work(db)

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        with self.files.inbound() as db:
            return [dict(row) for row in db.all(sql, values)]

    def events(self, identity: str) -> list[str]:
        return [row["event"] for row in self.rows("SELECT event FROM message_history WHERE message_id = ?", identity)]

    def detail(self, identity: str, event: str) -> dict[str, Any]:
        sql = "SELECT detail FROM message_history WHERE message_id = ? AND event = ? ORDER BY id DESC"
        return json.loads(self.rows(sql, identity, event)[0]["detail"])

    def accept(self, message_id: str) -> None:
        self.write(
            lambda db: messages.insert(
                db,
                MessageIn(
                    id=message_id, seq=messages.next_even_seq(db), kind="chat", timestamp=to_text(NOW),
                    status=MessageStatus.PENDING, content='{"text": "hi"}', channel_type=HOME.channel_type,
                    platform_id=HOME.platform_id, thread_id="t", process_after=NOW, recurrence="0 9 * * *",
                ),
                NOW,
            )
        )  # fmt: skip

    def fail(self, message_id: str) -> None:
        detail = {"code": "TRIES_EXHAUSTED", "reason": "gave up after 5 tries"}
        self.write(lambda db: change_status(db, message_id, MessageStatus.FAILED, "failed", self.at, detail=detail))

    def answer(self, row_id: str, seq: int, *, place: Address | None = HOME) -> None:
        where = (place.channel_type, place.platform_id) if place is not None else (None, None)
        with open_owner(self.files.folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
            db.execute(
                "INSERT INTO messages_out(id, seq, timestamp, kind, channel_type, platform_id, content)"
                " VALUES (?, ?, ?, 'chat', ?, ?, '{\"text\": \"yo\"}')",
                (row_id, seq, to_text(NOW), *where),
            )

    def collect(self) -> list[str]:
        """One look; what is to be sent now."""
        found = collect(self.files, MEANS, None, MovedClock(self.at))
        self.sends = {send.candidate.row.id: send for send in found.sends}
        return list(self.sends)

    def outcome(self, row_id: str, error: str | None = None, *, permanent: bool = False) -> list[DeadLetterDecision]:
        send: Send = self.sends[row_id]
        code = "DELIVERY_PERMANENT" if permanent else "DELIVERY_TRANSIENT"
        done = Outcome(send, sent=True, error=error, error_code=error and code, permanent=permanent)
        return record_outcomes(self.files, [done], MEANS, self.at)

    def dead_answer(self, row_id: str = "o1", seq: int = 1) -> None:
        self.answer(row_id, seq)
        assert self.collect() == [row_id]
        assert self.outcome(row_id, "answered 404", permanent=True)

    def open_ids(self) -> list[str]:
        return [letter["id"] for letter in read_dead_letters(self.files.folder, Wanted(100))[0]]

    def letter(self, letter_id: str) -> dict[str, Any]:
        found = read_dead_letter(self.files.folder, letter_id, ReadLimits())
        assert found is not None
        assert found["errors"] == []
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    files = SessionFiles(tmp_path / "s", ReadLimits())
    files.create()
    made = World(files)
    made.write(
        lambda db: db.execute(
            "INSERT INTO destinations VALUES ('home', NULL, 'channel', 'webhook', 'hook', NULL, NULL)"
        )
    )
    yield made
    check_session(files.folder.root)


class TestAnAnswer:
    def test_requeued_it_is_sent_again_under_its_id_and_delivered(self, world: World) -> None:
        world.dead_answer()
        assert world.rows("SELECT status FROM delivered") == [{"status": "failed"}]
        world.at += 10
        assert requeue(world.files, "o1", WHO, world.at) == {"id": "o1", "kind": "out", "requeued_as": "o1"}
        assert world.rows("SELECT * FROM delivered") == []
        assert world.open_ids() == []
        assert world.detail("o1", "requeued") == {
            "by": "ada", "reason": "it is up again", "attempts": 1, "code": "DELIVERY_PERMANENT", "error": "answered 404",
        }  # fmt: skip
        check_session(world.files.folder.root)
        assert world.collect() == ["o1"]
        assert world.outcome("o1") == []
        assert world.rows("SELECT message_out_id, status FROM delivered") == [
            {"message_out_id": "o1", "status": "delivered"}
        ]
        assert world.rows("SELECT * FROM delivery_attempts") == []

    def test_requeued_it_has_the_whole_time_for_retries_again(self, world: World) -> None:
        world.dead_answer()
        world.at += RETRY_FOR_S * 5000
        requeue(world.files, "o1", WHO, world.at)
        world.collect()
        assert world.outcome("o1", "answered 503") == []
        assert world.rows("SELECT state, attempts FROM delivery_attempts") == [{"state": "retrying", "attempts": 1}]
        world.at += RETRY_FOR_S * 1000 + 1
        world.collect()
        assert [dead.candidate.row.id for dead in world.outcome("o1", "answered 503")] == ["o1"]

    def test_the_agent_is_told_of_each_burial_and_never_woken(self, world: World) -> None:
        world.dead_answer()
        requeue(world.files, "o1", WHO, world.at)
        world.collect()
        world.outcome("o1", "answered 410", permanent=True)
        notices = world.rows("SELECT id, kind, trigger, content FROM messages_in ORDER BY seq")
        assert [row["id"] for row in notices] == ["dead-letter:o1", "dead-letter:o1+r1"]
        assert {(row["kind"], row["trigger"]) for row in notices} == {("system", 0)}
        told = json.loads(notices[1]["content"])["error"]
        assert told == "it was not delivered, and will not be without an operator (DELIVERY_PERMANENT)"

    def test_a_row_that_is_gone_is_refused_and_stays_dead(self, world: World) -> None:
        world.dead_answer()
        before = world.rows("SELECT * FROM delivery_attempts")
        with open_owner(world.files.folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
            db.execute("DELETE FROM messages_out")
        with pytest.raises(RowGoneError, match="o1"):
            requeue(world.files, "o1", WHO, world.at)
        assert world.rows("SELECT * FROM delivery_attempts") == before
        assert world.rows("SELECT status FROM delivered") == [{"status": "failed"}]
        assert world.letter("o1")["row"] is None
        with open_owner(world.files.folder.outbound_db, Role.OUTBOUND) as db, db.transaction():
            db.execute("INSERT INTO messages_out(id, seq, timestamp, kind, content) VALUES ('o1', 1, ?, 'chat', '1')",
                       (to_text(NOW),))  # fmt: skip

    def test_one_that_had_no_route_holds_back_its_destination_once_it_has(self, world: World) -> None:
        world.answer("o1", 1, place=None)
        assert world.collect() == []
        assert world.letter("o1")["code"] == "NO_ROUTE"
        world.write(lambda db: messages.set_routing(db, HOME))
        requeue(world.files, "o1", WHO, world.at)
        world.collect()
        world.outcome("o1", "answered 503")
        world.answer("o2", 3)
        assert world.collect() == [], "o1 failed for now, and o2 goes to the same place"

    def test_a_host_message_is_requeued_too(self, world: World) -> None:
        message = MessageIn("m1", 2, "chat", to_text(NOW), MessageStatus.FAILED, "{}")
        world.write(lambda db: host_messages.notify_sender(db, message, HOME, "TRIES_EXHAUSTED", "gave up", NOW))
        (notice,) = world.collect()
        world.outcome(notice, "answered 404", permanent=True)
        assert world.letter(notice)["row"]["text"] == "Gave up. Reference: m1."
        requeue(world.files, notice, WHO, world.at)
        assert world.collect() == [notice]
        world.outcome(notice)

    def test_dropped_it_is_listed_and_counted_no_more_and_its_rows_stay(self, world: World) -> None:
        world.dead_answer()
        assert read_queues(world.files.folder, NOW).dead == 1
        assert drop_one(world.files, "o1", WHO, world.at + 5) == "out"
        assert world.open_ids() == []
        queues = read_queues(world.files.folder, NOW)
        assert (queues.dead, queues.dead_example, queues.undelivered) == (0, None, 0)
        letter = world.letter("o1")
        assert (letter["open"], letter["next_step"], letter["state"]) == (False, None, "dead")
        assert letter["closed"] == {
            "id": "o1", "outcome": "dropped", "at": NOW + 5, "by": "ada", "reason": "it is up again", "requeued_as": None,
        }  # fmt: skip
        assert world.events("o1") == ["dead_lettered", "dropped"]
        with pytest.raises(NotDeadLetterError, match="dropped by ada"):
            requeue(world.files, "o1", WHO, world.at)
        with pytest.raises(NotDeadLetterError, match="dropped by ada"):
            drop_one(world.files, "o1", WHO, world.at)

    @pytest.mark.parametrize("repair", [requeue, drop_one])
    def test_what_is_on_its_way_or_delivered_is_no_dead_letter(
        self, world: World, repair: Callable[..., object]
    ) -> None:
        world.answer("o1", 1)
        world.collect()
        with pytest.raises(NotDeadLetterError, match="o1 is intended"):
            repair(world.files, "o1", WHO, world.at)
        world.outcome("o1")
        with pytest.raises(NotDeadLetterError, match="o1 is delivered"):
            repair(world.files, "o1", WHO, world.at)
        with pytest.raises(UnknownMessageError):
            repair(world.files, "o9", WHO, world.at)
        assert world.rows("SELECT * FROM message_history") == []


class TestAMessage:
    def test_requeued_it_is_a_new_message_and_the_failed_one_stays_failed(self, world: World) -> None:
        world.accept("m1")
        world.fail("m1")
        assert requeue(world.files, "m1", WHO, NOW + 7) == {"id": "m1", "kind": "in", "requeued_as": "m1+r1"}
        old, new = world.rows("SELECT * FROM messages_in ORDER BY seq")
        assert (old["id"], old["status"], new["id"], new["status"]) == ("m1", "failed", "m1+r1", "pending")
        same = ("kind", "content", "channel_type", "platform_id", "thread_id", "trigger", "series_id")
        assert {name: new[name] for name in same} == {name: old[name] for name in same}
        assert (new["process_after"], new["recurrence"], new["tries"]) == (None, None, 0)
        assert world.events("m1") == ["accepted", "failed", "requeued"]
        assert world.detail("m1", "requeued") == {"by": "ada", "reason": "it is up again", "requeued_as": "m1+r1"}
        birth = world.detail("m1+r1", "accepted")
        assert (birth["requeue_of"], birth["by"]) == ("m1", "ada")
        assert world.open_ids() == []
        assert read_queues(world.files.folder, NOW).failed == 0

    def test_twice_requeued_is_refused_and_a_second_failure_gets_the_next_number(self, world: World) -> None:
        world.accept("m1")
        world.fail("m1")
        requeue(world.files, "m1", WHO, NOW)
        with pytest.raises(NotDeadLetterError, match=r"requeued as m1\+r1 by ada"):
            requeue(world.files, "m1", WHO, NOW)
        world.fail("m1+r1")
        assert world.open_ids() == ["m1+r1"]
        assert requeue(world.files, "m1+r1", WHO, NOW)["requeued_as"] == "m1+r2"

    def test_a_long_id_still_gives_a_valid_one(self, world: World) -> None:
        long = "m" * 200
        world.accept(long)
        world.fail(long)
        new = requeue(world.files, long, WHO, NOW)["requeued_as"]
        assert (len(new), new[-3:]) == (200, "+r1")

    def test_dropped_it_stays_failed(self, world: World) -> None:
        world.accept("m1")
        world.fail("m1")
        assert world.open_ids() == ["m1"]
        assert drop_one(world.files, "m1", Operator("bob"), NOW) == "in"
        assert world.rows("SELECT status FROM messages_in") == [{"status": "failed"}]
        assert world.open_ids() == []
        assert world.detail("m1", "dropped") == {"by": "bob"}

    def test_a_pending_one_is_no_dead_letter(self, world: World) -> None:
        world.accept("m1")
        with pytest.raises(NotDeadLetterError, match="m1 is pending"):
            requeue(world.files, "m1", WHO, NOW)


def test_the_list_is_newest_first_bounded_and_says_why(world: World) -> None:
    world.accept("m1")
    world.fail("m1")
    for number in range(3):
        world.at += 1000
        world.dead_answer(f"o{number}", 2 * number + 1)
    letters, total = read_dead_letters(world.files.folder, Wanted(2))
    assert ([letter["id"] for letter in letters], total) == (["o2", "o1"], 4)
    assert letters[0] == {
        "kind": "out", "id": "o2", "at": NOW + 3000, "where": "webhook/hook", "code": "DELIVERY_PERMANENT",
        "reason": "answered 404", "attempts": 1, "seq": 5, "arrived_at": NOW + 3000,
    }  # fmt: skip
    (first,), count = read_dead_letters(world.files.folder, Wanted(2, "m1"))
    assert count == 1
    assert (first["kind"], first["code"], first["reason"], first["where"]) == (
        "in", "TRIES_EXHAUSTED", "gave up after 5 tries", "webhook/hook/t",
    )  # fmt: skip


class TestTheOrderOfWork:
    def test_it_is_by_seq_whatever_was_given_up_first(self, world: World) -> None:
        world.accept("m1")
        world.accept("m2")
        world.accept("m3")
        for name in ("m3", "m1", "m2"):
            world.at += 1000
            world.fail(name)
        letters, total = read_dead_letters(world.files.folder, Wanted(2, oldest_first=True))
        assert ([letter["id"] for letter in letters], total) == (["m1", "m2"], 3), "the page takes the oldest"
        assert [one["id"] for one in read_dead_letters(world.files.folder, Wanted(3))[0]] == ["m2", "m1", "m3"]

    def test_a_code_is_matched_before_the_page_is_cut(self, world: World) -> None:
        for number in range(3):
            world.dead_answer(f"o{number}", 2 * number + 1)
        world.accept("m1")
        world.fail("m1")
        wanted = Wanted(1, code="TRIES_EXHAUSTED", oldest_first=True)
        letters, total = read_dead_letters(world.files.folder, wanted)
        assert ([letter["id"] for letter in letters], total) == (["m1"], 1)

    def test_a_clock_that_was_set_back_swaps_no_two_of_a_session(self) -> None:
        def letter(session: str, seq: int, arrived_at: int) -> dict[str, Any]:
            return {"agent": "a", "session": session, "seq": seq, "arrived_at": arrived_at, "id": f"{session}{seq}"}

        given = [letter("x", 6, 50), letter("y", 2, 60), letter("x", 4, 100), letter("x", 2, 10)]
        assert [one["id"] for one in in_order_of_arrival(given, 4)] == ["x2", "y2", "x4", "x6"]
        assert [one["id"] for one in in_order_of_arrival(given, 3)] == ["x2", "y2", "x4"]


def test_a_letter_shows_its_row_its_history_and_the_next_step(world: World) -> None:
    world.dead_answer()
    letter = world.letter("o1")
    assert (letter["row"]["text"], letter["row"]["content"]) == ("yo", {"text": "yo"})
    assert [event["event"] for event in letter["history"]] == ["dead_lettered"]
    assert "requeue" in letter["next_step"]
    assert json.dumps(letter)


def test_a_file_from_before_there_were_repairs_is_read(world: World) -> None:
    world.dead_answer()
    world.write(lambda db: db.execute("DROP TABLE dead_letters_closed"))
    assert world.open_ids() == ["o1"]
    assert read_queues(world.files.folder, NOW).dead == 1
    assert world.letter("o1")["open"] is True
