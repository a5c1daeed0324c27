"""What is said in mid-turn is the same row in each try of its message, whoever shared the turn before."""

import json
from pathlib import Path
from typing import Any, Final, cast

import pytest

from container_runner.providers.protocol import Destination, OutMessage, TurnMessage
from container_runner.saying import Saying
from container_runner.shared.outbox import Outbox
from container_runner.shared.reply import Reply
from container_runner.shared.sent_files import FileSource
from schema.rows import Address, Kind

pytestmark = pytest.mark.anyio

HALL: Final = Address("webhook", "hall", None)
ROOM: Final = Address("webhook", "room", "t")


class Rows:
    """The rows that would be written, by id."""

    def __init__(self) -> None:
        self.written: dict[str, Reply] = {}

    def add(self, row_id: str, reply: Reply) -> bool:
        return self.written.setdefault(row_id, reply) is reply


def message(number: int, at: Address = HALL) -> TurnMessage:
    place = {"channel_type": at.channel_type, "platform_id": at.platform_id, "thread_id": at.thread_id}
    return TurnMessage(f"m{number}", 2 * number, "chat", "2026", "{}", **place)


def saying(rows: Rows, tmp_path: Path, *messages: TurnMessage) -> Saying:
    known = (Destination("ops", "channel", None, "webhook", "ops"),)
    files = FileSource(tmp_path, 0, 0)
    return Saying(cast("Outbox", rows), ("a", "s"), messages, None, known, 10_000, lambda *_: None, files)


@pytest.mark.parametrize("said", [{"to": None}, {"to": "ops"}, {"to": None, "kind": Kind.SYSTEM}])
async def test_a_try_of_one_message_repeats_what_the_shared_turn_said(tmp_path: Path, said: dict[str, Any]) -> None:
    rows = Rows()
    shared, alone = (message(1), message(2)), message(1)
    for messages in (shared, (alone,)):
        turn = saying(rows, tmp_path, *messages)
        for key in (None, "status", "status"):
            await turn.say(OutMessage({"text": "working"}, **said), key)
    assert len(rows.written) == 3


async def test_each_place_has_its_own_row_and_keeps_it(tmp_path: Path) -> None:
    rows = Rows()
    await saying(rows, tmp_path, message(1), message(2, ROOM)).say(OutMessage({"text": "working"}), None)
    await saying(rows, tmp_path, message(2, ROOM)).say(OutMessage({"text": "working"}), None)
    assert [reply.platform_id for reply in rows.written.values()] == ["hall", "room"]


async def test_an_edit_names_the_message_of_its_own_place(tmp_path: Path) -> None:
    rows = Rows()
    turn = saying(rows, tmp_path, message(1), message(2, ROOM))
    await turn.say(OutMessage({"text": "begun"}), "status")
    await turn.say(OutMessage({"text": "half way"}), "status")
    first = {reply.platform_id: identity for identity, reply in [*rows.written.items()][:2]}
    edits = {reply.platform_id: json.loads(reply.content)["edits"] for reply in [*rows.written.values()][2:]}
    assert edits == first
