"""The runner's own pruning: only what the host has provably taken note of, and only when it is old."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from container_runner.retention import Pruned, Retention
from container_runner.shared.errors import InboundUnreadableError
from container_runner.shared.reply import Reply
from container_runner.store import Store
from schema.instants import to_text
from schema.rows import AckStatus, TurnUsage
from tests.support.hot_journal import strand_journal
from tests.support.nest import nest
from tests.support.session_kit import SessionKit

NOW: Final = 1_795_226_400_000
DAY: Final = 86_400_000
KEEP: Final = 30 * DAY


class Bench:
    """A session whose runner and host both work at `now`."""

    def __init__(self, root: Path) -> None:
        self.kit = SessionKit(root)
        self.now = NOW
        self.store = Store(self.kit.folder.inbox, self.kit.folder.outbox, "I1", lambda: self.now)
        self.store.start()
        self.retention = self.make()

    def make(self, batch: int = 3) -> Retention:
        return Retention(
            self.kit.folder.inbox, self.kit.folder.outbox, keep_ms=KEEP, batch=batch, now_ms=lambda: self.now
        )

    def work(self, message_id: str) -> str:
        """A message in, claimed, answered and acked; the host has settled it. Returns the answer's id."""
        self.kit.add(message_id)
        batch = self.store.claim(10, first_poll=False)
        assert batch is not None
        (row,) = self.store.outbound_rows([Reply("chat", json.dumps({"text": "x"}), message_id, "local", "me", None)])
        self.store.finish([row], [message_id], AckStatus.COMPLETED)
        self.status(message_id, "completed")
        return row.id

    def status(self, message_id: str, status: str) -> None:
        self.kit.change("UPDATE messages_in SET status = ? WHERE id = ?", (status, message_id))

    def note(self) -> None:
        """The host's cursor goes up to the last row."""
        top = max(row["seq"] for row in self.kit.out())
        self.kit.change("INSERT OR REPLACE INTO delivery_cursor(id, seq, file_id) VALUES (1, ?, 'x')", (top,))

    def receipt(self, answer: str, status: str = "delivered") -> None:
        self.kit.change(
            "INSERT INTO delivered(message_out_id, status, delivered_at) VALUES (?, ?, ?)",
            (answer, status, to_text(self.now)),
        )
        self.note()

    def track(self, answer: str, state: str) -> None:
        self.kit.change(
            "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at) VALUES (?, 1, 'd', ?, 1)",
            (answer, state),
        )

    def close(self, answer: str) -> None:
        self.kit.change(
            "INSERT INTO dead_letters_closed(id, outcome, at, by) VALUES (?, 'dropped', ?, 'me')", (answer, self.now)
        )

    def later(self, days: float) -> None:
        self.now += int(days * DAY)

    def prune(self, retention: Retention | None = None) -> Pruned:
        one = retention or self.retention
        for _ in range(1000):
            pruned = one.step()
            if not pruned.more:
                return pruned
        raise AssertionError("it never came to an end")

    def answers(self) -> list[str]:
        return [row["id"] for row in self.kit.out()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_delivered_and_old_goes(bench: Bench) -> None:
    answers = [bench.work(f"m{number}") for number in range(8)]
    for answer in answers:
        bench.receipt(answer)
    bench.later(31)
    last = bench.work("last")
    bench.receipt(last)
    assert bench.prune() == Pruned(answers=8, acks=8)
    assert bench.answers() == [last]
    assert bench.kit.acks() == {"last": "completed"}


def test_a_row_without_a_receipt_stays_however_old(bench: Bench) -> None:
    first = bench.work("m1")
    bench.receipt(bench.work("m2"))
    bench.later(10_000)
    assert bench.prune().answers == 0
    assert first in bench.answers()


def test_the_age_is_the_receipts(bench: Bench) -> None:
    first, _ = bench.work("m1"), bench.work("m2")
    bench.later(100)
    bench.receipt(first)
    bench.later(29)
    assert bench.prune().answers == 0
    bench.later(2)
    assert bench.prune().answers == 1


@pytest.mark.parametrize("about", ["m1", "m2"])
def test_what_was_said_in_mid_turn_stays_until_no_turn_can_repeat_it(bench: Bench, about: str) -> None:
    """A turn of m1 and m2 asked, and died. m2 is over; the next turn of m1 asks again, under the same id."""
    bench.kit.add("m1")
    bench.kit.add("m2")
    assert bench.store.claim(10, first_poll=False) is not None
    address = ("local", "me", None)
    question = bench.store.outbound_rows([Reply("question", "{}", about, *address, final=False)])[0]
    bench.store.finish([question], ["m2"], AckStatus.COMPLETED)
    bench.status("m2", "completed")
    bench.receipt(question.id)
    bench.later(31)
    bench.receipt(bench.work("m3"))
    assert bench.prune(bench.make()).answers == 0
    bench.kit.change("UPDATE messages_in SET tries = 1 WHERE id = 'm1'")
    with bench.kit.runner_file() as db, db.transaction():
        db.execute("DELETE FROM processing_ack WHERE message_id = 'm1'")
    assert bench.prune(bench.make()).answers == 0
    assert question.id in bench.answers()
    bench.status("m1", "failed")
    assert bench.prune(bench.make()).answers == 1


@pytest.mark.parametrize("state", ["queued", "intended", "retrying", "dead"])
def test_a_row_that_the_host_still_tracks_stays(bench: Bench, state: str) -> None:
    first = bench.work("m1")
    bench.receipt(first, "failed" if state == "dead" else "delivered")
    bench.track(first, state)
    bench.receipt(bench.work("m2"))
    bench.later(31)
    assert bench.prune().answers == 0
    bench.close(first)
    bench.later(31)
    assert bench.prune().answers == (1 if state == "dead" else 0)


@pytest.mark.parametrize("state", ["queued", "intended", "retrying"])
def test_only_a_dead_letter_is_over_by_being_closed(bench: Bench, state: str) -> None:
    first = bench.work("m1")
    bench.receipt(first, "failed")
    bench.track(first, state)
    bench.close(first)
    bench.receipt(bench.work("m2"))
    bench.later(31)
    assert bench.prune().answers == 0


def test_a_letter_closed_of_late_stays(bench: Bench) -> None:
    first = bench.work("m1")
    bench.receipt(first, "failed")
    bench.track(first, "dead")
    bench.receipt(bench.work("m2"))
    bench.later(31)
    bench.close(first)
    assert bench.prune().answers == 0


def test_a_failed_receipt_alone_proves_nothing(bench: Bench) -> None:
    first = bench.work("m1")
    bench.receipt(first, "failed")
    bench.receipt(bench.work("m2"))
    bench.later(31)
    assert bench.prune().answers == 0


def test_a_row_above_the_hosts_cursor_stays(bench: Bench) -> None:
    first, second = bench.work("m1"), bench.work("m2")
    bench.work("m3")
    bench.receipt(first)
    bench.receipt(second)
    low = bench.kit.out()[0]["seq"]
    bench.kit.change("UPDATE delivery_cursor SET seq = ?", (low,))
    bench.later(31)
    assert bench.prune().answers == 1
    assert second in bench.answers()


def test_the_next_seq_is_above_every_seq_ever_used(bench: Bench) -> None:
    for number in range(4):
        bench.receipt(bench.work(f"m{number}"))
    used = bench.kit.out()[-1]["seq"]
    bench.kit.change("DELETE FROM messages_in")  # the host has pruned all of its own
    bench.later(31)
    bench.prune()
    bench.kit.add("next")
    bench.work("again")
    assert bench.kit.out()[-1]["seq"] > used


def test_a_file_made_anew_goes_on_above_what_the_host_has_noted(bench: Bench) -> None:
    """Its inode may be the old one's: the host would take lower seqs for rows that it has seen."""
    bench.receipt(bench.work("m1"))
    bench.kit.change("UPDATE delivery_cursor SET seq = 1001")
    bench.kit.folder.outbound_db.unlink()
    bench.store.start()
    bench.work("m2")
    assert bench.kit.out()[-1]["seq"] > 1001


@pytest.mark.parametrize("status", ["pending", "paused"])
def test_an_ack_stays_while_its_message_is_not_over(bench: Bench, status: str) -> None:
    bench.receipt(bench.work("m1"))
    bench.status("m1", status)
    bench.later(10_000)
    assert bench.prune().acks == 0
    assert bench.store.claim(10, first_poll=False) is None


def test_an_ack_whose_message_is_not_there_stays(bench: Bench) -> None:
    bench.receipt(bench.work("m1"))
    bench.kit.change("DELETE FROM messages_in WHERE id = 'm1'")
    bench.later(31)
    assert bench.prune().acks == 0


def test_a_claim_in_hand_stays(bench: Bench) -> None:
    bench.kit.add("m1")
    assert bench.store.claim(10, first_poll=False) is not None
    bench.status("m1", "failed")  # the host has given it up
    bench.later(31)
    assert bench.prune().acks == 0


@pytest.mark.parametrize("table", ["delivered", "delivery_attempts", "dead_letters_closed", "delivery_cursor"])
def test_a_host_without_such_a_table_proves_nothing(bench: Bench, table: str) -> None:
    bench.receipt(bench.work("m1"))
    bench.receipt(bench.work("m2"))
    bench.kit.change(f"DROP TABLE {table}")
    bench.later(31)
    assert bench.prune() == Pruned()
    assert len(bench.answers()) == 2


def test_a_step_looks_at_no_more_than_its_batch(bench: Bench) -> None:
    for number in range(6):
        bench.receipt(bench.work(f"m{number}"))
    bench.later(31)
    one = bench.make(batch=2)
    assert one.step().more
    assert len(bench.answers()) == 4


def test_after_a_pass_it_rests_for_an_hour(bench: Bench) -> None:
    assert bench.retention.due
    bench.prune()
    assert not bench.retention.due
    bench.later(1 / 24)
    assert bench.retention.due


def test_a_host_in_mid_commit_costs_a_moment_and_not_the_pass(bench: Bench) -> None:
    for number in range(5):
        bench.receipt(bench.work(f"m{number}"))
    bench.later(31)
    assert bench.retention.step().more
    strand_journal(
        bench.kit.folder.inbound_db, "INSERT INTO message_history(message_id, event, at) VALUES ('x', 'y', ?)"
    )
    with pytest.raises(InboundUnreadableError):
        bench.retention.step()
    bench.retention.postpone(10.0)
    assert not bench.retention.due
    bench.now += 10_000
    bench.kit.host().close()  # the host is back, and rolls back what it left
    assert bench.retention.due
    assert bench.prune().answers == 4


def test_what_went_with_an_answer_goes_with_it(bench: Bench, tmp_path: Path) -> None:
    first, second = bench.work("m1"), bench.work("m2")
    outbox = bench.kit.folder.outbox / "outbox"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for answer in (first, second):
        bench.receipt(answer)
        (outbox / answer).mkdir(parents=True)
    (outbox / first / "link").symlink_to(elsewhere)
    bench.later(31)
    bench.prune()
    assert [path.name for path in outbox.iterdir()] == [second]
    assert elsewhere.is_dir()


def test_a_nest_that_nobody_can_walk_stays_and_the_rest_goes(bench: Bench) -> None:
    answers = [bench.work(f"m{number}") for number in range(3)]
    outbox = bench.kit.folder.outbox / "outbox"
    for answer in answers:
        bench.receipt(answer)
        (outbox / answer).mkdir(parents=True)
    bench.later(31)
    with nest(outbox / answers[0], "d", 3000):
        assert bench.prune().answers == 2
        assert not (outbox / answers[1]).exists()


def test_room_goes_back_to_the_disk_when_most_of_the_file_is_free(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_runner.retention._MIN_FREE_BYTES", 64 * 1024)
    big = json.dumps({"text": "x" * 8000})
    kit: Any = bench.kit
    for number in range(40):
        bench.receipt(bench.work(f"m{number}"))
    with kit.runner_file() as db, db.transaction():
        db.execute("UPDATE messages_out SET content = ?", (big,))
    before = kit.folder.outbound_db.stat().st_size
    bench.later(31)
    pruned = bench.prune()
    assert pruned.given_back > 0
    assert kit.folder.outbound_db.stat().st_size == before - pruned.given_back


def test_what_a_cancelled_turn_used_goes_too(bench: Bench) -> None:
    """Its claim is released, so no ack takes it along."""
    for name, status in (("m1", "cancelled"), ("m2", "pending")):
        bench.kit.add(name)
        assert bench.store.claim(10, first_poll=False) is not None
        bench.store.give_back([name], (name, TurnUsage(input_tokens=5)))
        bench.status(name, status)
    used = "SELECT message_id FROM turn_usage ORDER BY message_id"
    bench.prune(bench.make())
    assert len(bench.kit._read(used)) == 2
    bench.later(31)
    bench.prune(bench.make())
    assert [row["message_id"] for row in bench.kit._read(used)] == ["m2"]
