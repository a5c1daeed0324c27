"""What `status`, `doctor`, the metrics, the sweep and a deletion count in one session is the same."""

from pathlib import Path

from daemon.inspect.queues import read_queues
from daemon.maintenance.session_deletion import unfinished_work
from daemon.store.backlog import count_dead, read_backlog
from daemon.store.deliveries import count_open
from daemon.store.messages import count_due
from schema.connect import open_reader
from tests.support.session_world import NOW, SessionWorld

HOUR = 3_600_000


def test_every_reader_counts_alike(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "sessions" / "echo" / "s", NOW)
    for number in range(3):
        world.accept(f"due-{number}")
    for number in range(600):
        world.accept(f"later-{number}", process_after=NOW + HOUR)
    for number in range(4):
        world.accept(f"failed-{number}")
        world.change("UPDATE messages_in SET status = 'failed' WHERE id = ?", (f"failed-{number}",))
    states = ["queued"] * 2 + ["retrying"] * 3 + ["intended"] + ["dead"] * 5
    for number, state in enumerate(states):
        world.change(
            "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, attempts, first_at, source,"
            " next_attempt_at) VALUES (?, ?, 'local\x1fx\x1f', ?, 1, ?, 'agent', ?)",
            (f"a{number}", 2001 + 2 * number, state, NOW - number, NOW + HOUR if number == 0 else None),
        )
    for closed in ("failed-0", f"a{len(states) - 1}"):
        world.change("INSERT INTO dead_letters_closed(id, outcome, at, by) VALUES (?, 'dropped', 1, 'root')", (closed,))
    queues = read_queues(world.files.folder, NOW)
    assert queues.error is None
    with open_reader(world.files.folder.inbound_db) as db:
        backlog, dead, opened, due = read_backlog(db, NOW), count_dead(db), count_open(db), count_due(db, NOW)
    assert (queues.failed, queues.dead) == (3, 4)
    assert queues.dead_letters == backlog.dead == dead == 7
    assert (queues.pending, queues.scheduled) == (603, 600)
    assert queues.due == backlog.waiting == due == 3
    assert queues.undelivered == sum(one.count for one in backlog.answers) == 5
    assert queues.scheduled_answers == sum(one.scheduled for one in backlog.answers) == 1
    assert queues.oldest_undelivered_at == min(one.oldest_at or NOW for one in backlog.answers) == NOW - 5
    assert opened == 6
    assert unfinished_work(world.files) == ["603 messages are not finished", "6 answers are not delivered"]
