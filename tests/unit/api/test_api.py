"""The operator API over a real socket: routes, envelopes, refusals."""

import errno
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.api.envelopes import status_of
from daemon.channels.protocol import Accepted, Incoming
from daemon.core.attachments import Attachment
from schema.errors import ClawbusError, StorageError
from schema.rows import Address
from tests.docs.error_codes import error_classes
from tests.support.fake_operations import FakeOperations, serving


@pytest.fixture
def operations() -> FakeOperations:
    return FakeOperations()


@pytest.fixture
def http(operations: FakeOperations, tmp_path_factory: pytest.TempPathFactory) -> Generator[httpx.Client]:
    path: Path = tmp_path_factory.mktemp("s") / "c.sock"
    with (
        serving(operations, path),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x", timeout=60) as http,
    ):
        yield http


def message(**changes: Any) -> dict[str, Any]:
    address = {"channel_type": "local", "platform_id": "cli"}
    return {"agent": "echo", "session": "s", "content": {"text": "hi"}, "id": "m1", "address": address} | changes


@dataclass
class NotingOperations(FakeOperations):
    """Notes what it is handed, and answers with a value of its own in every field."""

    noted: list[Incoming] = field(default_factory=list[Incoming])

    async def accept(self, incoming: Incoming) -> Accepted:
        self.noted.append(incoming)
        return Accepted("m0", "other", "t", 42, True, Address("hook", "place", "t9"), "completed", "failed", "m0+r7")


def test_a_message_and_its_yes_pass_with_every_field(tmp_path: Path) -> None:
    """No field of either has its default here, so one that is dropped or mixed up on the way differs."""
    whole = Incoming(
        agent="echo", session="s", content={"text": "hi"}, message_id="m1", kind="task",
        address=Address("local", "cli", "t1"), trigger=False, on_wake=True, process_after=5, recurrence="0 9 * * *",
        create_session=False, traceparent=f"00-{'a' * 32}-{'b' * 16}-01", not_after=9, stop_late=True,
        files=(Attachment("a.txt", b"\0hi"),),
    )  # fmt: skip
    defaults = Incoming("", "", None)
    inside = ("note", "person", "plain", "relay", "to_fetch")  # those come from inside
    assert [
        one.name
        for one in fields(Incoming)
        if one.name not in inside and getattr(whole, one.name) == getattr(defaults, one.name)
    ] == []
    left_out = ("message_id", "traceparent", *inside)
    body = {name: value for name, value in asdict(whole).items() if name not in left_out}
    body["files"] = [{"name": "a.txt", "data": "AGhp"}]
    operations = NotingOperations()
    with (
        serving(operations, tmp_path / "c.sock"),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "c.sock")), base_url="http://x") as http,
    ):
        headers = {"traceparent": str(whole.traceparent)}
        answer = http.post("/v1/messages", json=body | {"id": whole.message_id}, headers=headers)
    assert answer.status_code == 200
    assert operations.noted == [whole]
    assert answer.json()["result"] == {
        "message_id": "m0",
        "agent": "other",
        "session": "t",
        "seq": 42,
        "duplicate": True,
        "address": {"channel_type": "hook", "platform_id": "place", "thread_id": "t9"},
        "state": "completed",
        "previous": "failed",
        "requeued_as": "m0+r7",
    }


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (message(agent="nobody"), 404, "UNKNOWN_AGENT", "nobody"),
        (message(create_session=False), 404, "UNKNOWN_SESSION", "echo/s"),
        (message(typo=1), 400, "REQUEST_REFUSED", "typo"),
        (message(trigger="yes"), 400, "REQUEST_REFUSED", "trigger"),
        (message(process_after=True), 400, "REQUEST_REFUSED", "process_after"),
        ({"agent": "echo"}, 400, "REQUEST_REFUSED", "session"),
        ([], 400, "REQUEST_REFUSED", "body"),
    ],
)
def test_a_refusal_has_its_code_and_fix(
    http: httpx.Client, operations: FakeOperations, body: Any, status: int, code: str, says: str
) -> None:
    answer = http.post("/v1/messages", json=body)
    refusal = answer.json()
    assert (answer.status_code, refusal["ok"], refusal["error"]["code"]) == (status, False, code)
    assert says in refusal["error"]["message"]
    assert refusal["fix"]
    assert operations.received == []


def test_a_known_id_with_other_content_conflicts(http: httpx.Client) -> None:
    assert http.post("/v1/messages", json=message()).json()["result"]["duplicate"] is False
    assert http.post("/v1/messages", json=message()).json()["result"]["duplicate"] is True
    assert http.post("/v1/messages", json=message(content="other")).status_code == 409


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 50_000])
def test_a_body_that_is_no_json_is_refused(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/messages", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "REQUEST_REFUSED")


def test_a_body_over_the_limit_is_refused_also_when_its_length_is_not_told(http: httpx.Client) -> None:
    big = b'{"content":"' + b"x" * 200_000 + b'"}'
    assert http.post("/v1/messages", content=big).status_code == 413
    chunks = (big[start : start + 10_000] for start in range(0, len(big), 10_000))
    assert http.post("/v1/messages", content=chunks).json()["error"]["code"] == "BODY_TOO_LARGE"


def test_a_bug_is_told_without_its_details(http: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    answer = http.post("/v1/messages", json=message(content="boom"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "INTERNAL")
    assert "secret" not in answer.text
    assert "control_request_failed" in capsys.readouterr().out


def test_the_mailbox_is_read_by_cursor(http: httpx.Client) -> None:
    for name in ("m1", "m2", "m3"):
        http.post("/v1/messages", json=message(id=name))
    first = http.get("/v1/mailbox/cli?limit=2").json()["result"]
    assert [entry["in_reply_to"] for entry in first["entries"]] == ["m1", "m2"]
    rest = http.get(f"/v1/mailbox/cli?after={first['next_after']}").json()["result"]
    assert [entry["in_reply_to"] for entry in rest["entries"]] == ["m3"]
    assert http.get("/v1/mailbox/other?after=7").json()["result"] == {
        "mailbox": "other",
        "entries": [],
        "next_after": 7,
    }


def test_a_reply_is_waited_for(http: httpx.Client) -> None:
    http.post("/v1/messages", json=message())
    found = http.get("/v1/replies?agent=echo&session=s&message_id=m1&wait_s=5").json()["result"]["entry"]
    assert found["content"] == '{"text": "hi"}'
    none = http.get("/v1/replies?agent=mute&session=s&message_id=m9&wait_s=0").json()["result"]
    assert none == {"entry": None}


def test_a_message_is_accepted_and_its_answer_waited_for_in_one_call(
    http: httpx.Client, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads(line) for line in http.post("/v1/messages?wait_s=5", json=message()).text.splitlines()]
    assert [one["ok"] for one in lines] == [True, True]
    assert (lines[0]["result"]["message_id"], lines[1]["result"]["entry"]["in_reply_to"]) == ("m1", "m1")

    async def broken(*_: object) -> None:
        raise StorageError("the disk image is malformed")

    monkeypatch.setattr(operations, "wait_reply", broken)
    first, second = http.post("/v1/messages?wait_s=5", json=message(id="m2")).text.splitlines()
    assert json.loads(first)["result"]["message_id"] == "m2"
    assert json.loads(second)["error"]["code"] == "STORAGE"


def test_the_acceptance_is_sent_before_the_wait(http: httpx.Client, operations: FakeOperations) -> None:
    with http.stream("POST", "/v1/messages?wait_s=60", json=message(agent="mute")) as answer:
        assert json.loads(next(answer.iter_lines()))["result"]["message_id"] == "m1"
        assert operations.polling.wait(10)
    assert http.get("/v1/status").json()["ok"] is True


@pytest.mark.parametrize("query", ["wait_s=x", "wait_s=1&after=x", "wait_s=1&after=-1"])
def test_a_wrong_wait_is_refused_before_anything_is_stored(
    http: httpx.Client, operations: FakeOperations, query: str
) -> None:
    answer = http.post(f"/v1/messages?{query}", json=message())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "REQUEST_REFUSED")
    assert operations.received == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("/v1/mailbox/cli?limit=0", "REQUEST_REFUSED"),
        ("/v1/mailbox/cli?after=x", "REQUEST_REFUSED"),
        ("/v1/mailbox/cli?wait_s=x", "REQUEST_REFUSED"),
        ("/v1/replies?agent=echo&session=s", "REQUEST_REFUSED"),
        ("/v1/replies?agent=..&session=s&message_id=m", "INVALID_NAME"),
        ("/v1/sessions/echo/..%2Fx", "INVALID_NAME"),
        ("/v1/nothing", "REQUEST_REFUSED"),
    ],
)
def test_wrong_questions_are_refused(http: httpx.Client, query: str, code: str) -> None:
    answer = http.get(query)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("wait", ["nan", "-1", "0"])
def test_an_odd_wait_is_no_wait(http: httpx.Client, wait: str) -> None:
    assert http.get(f"/v1/replies?agent=mute&session=s&message_id=m&wait_s={wait}").json()["result"] == {"entry": None}


def test_sessions_are_acted_on(http: httpx.Client, operations: FakeOperations) -> None:
    assert http.post("/v1/sessions/echo/s/stop").json()["result"]["stopping"] is True
    assert http.post("/v1/sessions/echo/s/kill?reason=why&by=me").json()["result"]["exit_code"] == 137
    assert http.post("/v1/sessions/echo/s/release").json()["result"] == {"released": False, "was": None}
    assert operations.actions == [
        ("stop", "echo", "s"),
        ("kill", "echo", "s", "why", "me"),
        ("release", "echo", "s", "", "operator"),
    ]
    unconfirmed = http.post("/v1/sessions/echo/stuck/kill")
    assert (unconfirmed.status_code, unconfirmed.json()["error"]["code"]) == (504, "EXIT_NOT_CONFIRMED")
    assert http.put("/v1/sessions/echo/s/kill").status_code == 405


def test_reports_pass_through(http: httpx.Client) -> None:
    assert http.get("/v1/status").json()["result"]["live"]["pid"] == 7
    assert http.get("/v1/sessions").json()["result"]["sessions"][0]["session"] == "demo"


@pytest.mark.parametrize("error", error_classes(), ids=lambda one: one.__name__)
def test_a_refusal_that_names_its_cause_is_no_500(error: type[ClawbusError]) -> None:
    one = error.__new__(error)
    assert status_of(one) == 500 if error.code == "INTERNAL" else 400 <= status_of(one) != 500


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "HOST_TROUBLE"),
        (OSError(errno.EIO, "Input/output error"), "STORAGE"),
        (MemoryError(), "HOST_TROUBLE"),
        (RuntimeError("can't start new thread"), "HOST_TROUBLE"),
    ],
    ids=repr,
)
def test_what_this_host_cannot_do_now_is_named_and_no_defect(
    http: httpx.Client, operations: FakeOperations, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str
) -> None:
    async def failing() -> dict[str, Any]:
        raise raised

    monkeypatch.setattr(operations, "status", failing)
    answer = http.get("/v1/status")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == code
    assert answer.json()["fix"]
