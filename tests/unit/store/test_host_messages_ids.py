"""The host's notices have ids that a container can guess: its own row of that id must not keep one from being said."""

from pathlib import Path

from daemon.store import deliveries, host_messages, messages
from schema.rows import Address, DeliveryState, MessageOut
from tests.support.session_world import SessionWorld

HOME = Address("local", "cli")


def test_the_answer_to_a_command_is_said_beside_a_row_with_its_id(tmp_path: Path) -> None:
    world = SessionWorld(tmp_path / "s")
    world.accept("ev-1")
    row = MessageOut("said:ev-1", 1, "chat", "", "{}")
    with world.files.inbound() as db, db.transaction():
        deliveries.track(
            db, row, from_host=False, destination=HOME.key, state=DeliveryState.QUEUED, not_before=None, at=world.now
        )
        message = messages.find(db, "ev-1")
        assert message is not None
        host_messages.say(db, message, HOME, "Stopped.", world.now)
    (said,) = world.read("SELECT id, content FROM host_messages")
    assert said["id"].startswith("said:ev-1:")
    assert "Stopped." in said["content"]
