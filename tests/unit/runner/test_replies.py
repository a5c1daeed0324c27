"""Who is answered, where, and in reply to what: the pure rules, by table."""

import json
from typing import Final

import pytest

from container_runner.providers.protocol import Destination, OutMessage, TurnMessage
from container_runner.replies import Reply, failure_replies, plan_replies
from container_runner.shared.errors import AnswerInvalidError, CommandExitError
from schema.rows import Address

ROUTING: Final = Address("local", "home", "rt")
DESTINATIONS: Final = (
    Destination("ops", "channel", channel_type="webhook", platform_id="ops"),
    Destination("chat", "channel", channel_type="chat", platform_id="room"),
    Destination("nowhere", "channel"),
)


def message(name: str, seq: int, address: str = "", *, trigger: bool = True) -> TurnMessage:
    """`address` is channel/place/thread; parts may be missing."""
    channel, place, thread = [*address.split("/"), "", "", ""][:3]
    return TurnMessage(name, seq, "chat", "", "{}", trigger, channel or None, place or None, thread or None)


def out(text: str = "x", to: str | None = None, thread: str | None = None) -> OutMessage:
    return OutMessage(content={"text": text}, to=to, thread_id=thread)


def shown(reply: Reply) -> tuple[str, str | None, list[str]]:
    address = "/".join(part or "" for part in (reply.channel_type, reply.platform_id, reply.thread_id))
    return address, reply.in_reply_to, json.loads(reply.content).get("answers", [])


Row = tuple[str, str | None, list[str]]


@pytest.mark.parametrize(
    ("messages", "outputs", "expected"),
    [
        pytest.param(
            [message("m1", 2, "chat/room")], [out()], [("chat/room/", "m1", [])], id="one message, one answer"
        ),
        pytest.param(
            [message("m1", 2, "chat/room"), message("m2", 4, "chat/room")],
            [out()],
            [("chat/room/", "m2", ["m1", "m2"])],
            id="two of one address: the latest is replied to, both are named",
        ),
        pytest.param(
            [message("m1", 2, "chat/room"), message("m2", 4, "webhook/ci"), message("m3", 6, "chat/room")],
            [out()],
            [("chat/room/", "m3", ["m1", "m3"]), ("webhook/ci/", "m2", [])],
            id="each address is answered once",
        ),
        pytest.param(
            [message("m1", 2, "chat/room/t1"), message("m2", 4, "chat/room/t2")],
            [out()],
            [("chat/room/t1", "m1", []), ("chat/room/t2", "m2", [])],
            id="a thread is an address",
        ),
        pytest.param(
            [message("m1", 2)], [out()], [("local/home/rt", "m1", [])], id="no address: the session's routing"
        ),
        pytest.param(
            [message("c1", 2, "webhook/ci", trigger=False), message("m2", 4, "chat/room")],
            [out()],
            [("chat/room/", "m2", [])],
            id="context is not answered",
        ),
        pytest.param(
            [message("m1", 2, "chat/room")],
            [out("a"), out("b")],
            [("chat/room/", "m1", []), ("chat/room/", "m1", [])],
            id="each output is a row",
        ),
        pytest.param(
            [message("m1", 2, "chat/room/t1")],
            [out(to="ops")],
            [("webhook/ops/", None, [])],
            id="another destination replies to nobody",
        ),
        pytest.param(
            [message("m1", 2, "chat/room/t1"), message("m2", 4, "chat/room/t2"), message("m3", 6, "webhook/ci")],
            [out(to="chat")],
            [("chat/room/t2", "m2", [])],
            id="a destination's thread is that of its latest message",
        ),
        pytest.param(
            [message("m1", 2, "chat/room/t1"), message("c2", 4, "chat/room/t2", trigger=False)],
            [out(to="chat")],
            [("chat/room/t2", None, [])],
            id="context moves the thread too",
        ),
        pytest.param(
            [message("m1", 2, "chat/room/t1")],
            [out(to="chat", thread="t9"), out(thread="t9")],
            [("chat/room/t9", None, []), ("chat/room/t9", "m1", [])],
            id="a thread that the output names wins",
        ),
        pytest.param([message("m1", 2, "chat/room")], [], [], id="silence is an answer's choice"),
    ],
)
def test_replies(messages: list[TurnMessage], outputs: list[OutMessage], expected: list[Row]) -> None:
    plan = plan_replies(outputs, messages, ROUTING, DESTINATIONS)
    assert [shown(reply) for reply in plan.replies] == expected
    assert plan.unknown == ()


@pytest.mark.parametrize("name", ["stranger", "nowhere", ""])
def test_an_unknown_destination_is_dropped_while_the_valid_one_is_sent(name: str) -> None:
    plan = plan_replies([out(to=name), out("good", to="ops")], [message("m1", 2, "chat/room")], None, DESTINATIONS)
    assert [json.loads(reply.content)["text"] for reply in plan.replies] == ["good"]
    assert plan.unknown == (name,)


def test_a_session_without_any_address_still_gets_its_row() -> None:
    (reply,) = plan_replies([out()], [message("m1", 2)], None, ()).replies
    assert shown(reply) == ("//", "m1", [])


FAILED = (message("m1", 2, "chat/room"), message("m2", 4, "chat/room"), message("m3", 6, "webhook/ci"))
SECRET = CommandExitError("exit code 3: 401 for https://api.example.org/?key=sk-live", detail="secret stderr")


def test_a_failure_is_an_answer_to_everyone_who_waits_with_a_reference_and_without_the_reason() -> None:
    plan = failure_replies(SECRET, FAILED, None, open_detail=False)
    assert [shown(reply) for reply in plan.replies] == [("chat/room/", "m2", ["m1", "m2"]), ("webhook/ci/", "m3", [])]
    for reply, reference in zip(plan.replies, ("m2", "m3"), strict=True):
        content = json.loads(reply.content)
        assert content["error"] == {
            "code": "COMMAND_EXIT",
            "message": "The agent could not answer this message.",
            "reference": reference,
        }
        assert content["text"] == f"The agent could not answer this message. Reference: {reference}."
        assert "exit code" not in reply.content
        assert "secret" not in reply.content


def test_a_setting_opens_the_reason_but_never_the_whole_stderr() -> None:
    plan = failure_replies(SECRET, FAILED, None, open_detail=True)
    content = json.loads(plan.replies[0].content)
    assert content["text"] == f"The agent failed: {SECRET}"
    assert content["error"] == {"code": "COMMAND_EXIT", "message": str(SECRET), "reference": "m2"}
    assert "secret" not in plan.replies[0].content


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    (reply,) = plan_replies([out("\ud800 ü")], [message("m1", 2, "a/b")], None, ()).replies
    assert reply.content.encode()
    assert json.loads(reply.content)["text"] == "\ufffd ü"


@pytest.mark.parametrize(
    "value",
    [float("inf"), float("nan"), 10**400, {1: 2}, {"a": b"x"}, {"a": object()}],
    ids=["inf", "nan", "huge", "key", "bytes", "object"],
)
def test_content_that_no_channel_can_send_is_refused_whoever_made_it(value: object) -> None:
    with pytest.raises(AnswerInvalidError):
        plan_replies([OutMessage({"value": value})], [message("m1", 2, "a/b")], None, ())
