"""The webhook's way in over real sockets: every refusal, and 202 only after the commit."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import httpx
import pytest
import structlog

from daemon.channels.signatures import sign
from daemon.channels.webhook import WebhookChannel
from daemon.core.errors import (
    AnswerForbiddenError,
    AnswerRefusedError,
    AttachmentError,
    ContentError,
    IdConflictError,
    MessageError,
    QuestionClosedError,
    UnknownAgentError,
    UnknownQuestionError,
    UnknownSessionError,
)
from schema.errors import ClawbusError, FileBusyError, StorageError
from schema.instants import from_text
from schema.rows import Address, Kind
from tests.support.channels import NOW_MS, SECRET, Bus, SetClock, build, running
from tests.support.webhooks import request_signature

pytestmark = pytest.mark.anyio

GITHUB_SECRET = "It's a Secret to Everybody"
NOW_S = NOW_MS // 1000
FAR = 30.0


class Served:
    """A channel that serves, its bus, and a client."""

    def __init__(self, channel: WebhookChannel, bus: Bus, client: httpx.AsyncClient, clock: SetClock) -> None:
        self.channel, self.bus, self.client, self.clock = channel, bus, client, clock

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        return await self.client.post(path, content=body, headers=headers)

    async def send(self, body: bytes = b'{"n":1}', path: str = "/hooks/ours", **headers: str) -> httpx.Response:
        return await self.post(path, body, signed(body, path=unquote(path), headers=headers))


def signed(
    body: bytes, at: int = NOW_S, headers: dict[str, str] | None = None, path: str = "/hooks/ours"
) -> dict[str, str]:
    given = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
    values = {
        "content-type": "application/json",
        "x-clawbus-timestamp": str(at),
        "x-clawbus-signature": made(at, given.get("x-clawbus-id", ""), body, path),
    }
    return {**values, **given}


def made(at: int, message_id: str, body: bytes, path: str = "/hooks/ours", secret: str = SECRET) -> str:
    return request_signature(secret, str(at), path, message_id, body)


def from_github(body: bytes, delivery: str = "72d3162e-cc78-11e3-81ab-4c9367dc0958", **headers: str) -> dict[str, str]:
    values = {
        "content-type": "application/json",
        "x-github-delivery": delivery,
        "x-github-event": "issues",
        "x-github-hook-id": "292430182",
        "x-hub-signature-256": sign(GITHUB_SECRET.encode(), body),
        "user-agent": "GitHub-Hookshot/044aadd",
    }
    return {**values, **{name.replace("_", "-"): value for name, value in headers.items()}}


def table(**changes: Any) -> dict[str, Any]:
    hooks = {
        "ours": {"agent": "a", "session": "s", "secret": SECRET},
        "any": {"agent": "a", "session": "*", "secret": SECRET},
        "gh": {"agent": "a", "session": "s", "secret": GITHUB_SECRET, "signature": "github"},
    }
    return {"listen": "127.0.0.1:0", "max_body_bytes": 10_000, "body_timeout_s": FAR, "hooks": hooks, **changes}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncGenerator[Served]:
    clock = SetClock()
    channel: WebhookChannel = build(WebhookChannel, "webhook", table(), tmp_path, clock)
    async with running(channel) as bus:
        assert channel.bound_address is not None
        base = "http://{}:{}".format(*channel.bound_address)
        async with httpx.AsyncClient(base_url=base, timeout=FAR) as client:
            yield Served(channel, bus, client, clock)


@asynccontextmanager
async def impatient(folder: Path) -> AsyncGenerator[tuple[str, int]]:
    """A running channel that waits for a body for 0.3 s: its address."""
    channel: WebhookChannel = build(WebhookChannel, "webhook", table(body_timeout_s=0.3), folder, SetClock())
    async with running(channel):
        assert channel.bound_address is not None
        yield channel.bound_address


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    answer: dict[str, Any] = response.json()
    assert (response.status_code, answer["error"]["code"]) == (status, code), answer
    assert answer["ok"] is False
    assert answer["error"]["message"]
    assert answer["fix"]
    assert SECRET not in response.text
    return answer


# --- yes -------------------------------------------------------------------------------------------------------------


async def test_a_signed_request_becomes_a_message(served: Served) -> None:
    response = await served.send(b'{"n": [1, "\xc3\xa9"]}', x_clawbus_id="id-1", x_clawbus_event="ping")
    assert response.status_code == 202
    assert response.json() == {"ok": True, "id": "id-1", "duplicate": False}
    (message,) = served.bus.messages
    assert (message.agent, message.session, message.message_id, message.kind) == ("a", "s", "id-1", Kind.WEBHOOK)
    assert message.address == Address("webhook", "ours", None)
    assert message.content == {
        "event": "ping",
        "headers": {"content-type": "application/json"},
        "body": {"n": [1, "é"]},
    }


async def test_a_github_delivery_becomes_a_message_and_its_replay_a_duplicate(served: Served) -> None:
    body = b'{"action":"opened"}'
    first = await served.post("/hooks/gh", body, from_github(body))
    assert first.json() == {"ok": True, "id": "72d3162e-cc78-11e3-81ab-4c9367dc0958", "duplicate": False}
    # A redelivery may come from another version of the sender.
    again = await served.post("/hooks/gh", body, from_github(body, user_agent="GitHub-Hookshot/1"))
    assert again.status_code == 202
    assert again.json()["duplicate"] is True
    (message,) = served.bus.messages
    content: Any = message.content
    assert (content["event"], content["body"]) == ("issues", {"action": "opened"})
    assert content["headers"]["x-github-hook-id"] == "292430182"


async def test_githubs_form_and_plain_text(served: Served) -> None:
    body = b"payload=%7B%22zen%22%3A%22caf%C3%A9%22%7D"
    headers = from_github(body, content_type="application/x-www-form-urlencoded")
    assert (await served.post("/hooks/gh", body, headers)).status_code == 202
    assert (await served.send("naïve".encode(), content_type="text/plain; charset=utf-8")).status_code == 202
    contents: list[Any] = [message.content for message in served.bus.messages]
    assert contents[0]["body"] == {"zen": "café"}
    assert contents[1]["text"] == "naïve"


async def test_the_session_from_the_path(served: Served) -> None:
    assert (await served.send(path="/hooks/any/blue")).status_code == 202
    assert served.bus.messages[0].session == "blue"


async def test_without_an_id_the_same_request_is_the_same_message(served: Served) -> None:
    first, again = await served.send(), await served.send()
    assert first.json()["id"] == again.json()["id"]
    assert (first.json()["duplicate"], again.json()["duplicate"]) == (False, True)
    assert len(served.bus.messages) == 1


async def test_202_comes_after_the_commit_and_not_before(served: Served) -> None:
    served.bus.gate = anyio.Event()
    responses: list[httpx.Response] = []

    async def post() -> None:
        responses.append(await served.send())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(post)
        with anyio.fail_after(FAR):
            await served.bus.entered.wait()
        await anyio.wait_all_tasks_blocked()
        assert responses == []
        served.bus.gate.set()
    assert responses[0].status_code == 202


async def test_a_large_body_within_the_limit(served: Served) -> None:
    body = json.dumps({"x": "y" * 9_980}).encode()
    assert len(body) <= 10_000
    assert (await served.send(body)).status_code == 202


# --- no --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-clawbus-signature": "sha256=" + "0" * 64},
        {"x-clawbus-timestamp": str(NOW_S)},
        {"x-clawbus-timestamp": str(NOW_S), "x-clawbus-signature": "sha256=" + "0" * 64},
        {"x-clawbus-timestamp": str(NOW_S), "x-clawbus-signature": sign(SECRET.encode(), b"{}")},
        {"x-clawbus-timestamp": str(NOW_S), "x-clawbus-signature": made(NOW_S, "", b"{}", secret="another secret")},
        {"x-clawbus-timestamp": str(NOW_S + 1), "x-clawbus-signature": made(NOW_S, "", b"{}")},
        {"x-clawbus-timestamp": "soon", "x-clawbus-signature": made(NOW_S, "", b"{}")},
        {"x-hub-signature-256": sign(SECRET.encode(), b"{}"), "x-github-delivery": "x"},
    ],
)
async def test_401(served: Served, headers: dict[str, str]) -> None:
    response = await served.post("/hooks/ours", b"{}", {"content-type": "application/json", **headers})
    refused(response, 401, "SIGNATURE_REFUSED")
    assert served.bus.messages == []


@pytest.mark.parametrize("offset", [-301, 301])
async def test_401_for_what_was_signed_too_long_ago_or_ahead(served: Served, offset: int) -> None:
    refused(await served.post("/hooks/ours", b"{}", signed(b"{}", NOW_S + offset)), 401, "SIGNATURE_REFUSED")


@pytest.mark.parametrize("given", [None, "sha256=" + "0" * 64, sign(b"another", b"{}")])
async def test_401_for_github(served: Served, given: str | None) -> None:
    headers = from_github(b"{}")
    del headers["x-hub-signature-256"]
    if given is not None:
        headers["x-hub-signature-256"] = given
    refused(await served.post("/hooks/gh", b"{}", headers), 401, "SIGNATURE_REFUSED")


async def test_401_for_a_replay_under_another_id_or_path(served: Served) -> None:
    body = b'{"n":1}'
    seen = signed(body, path="/hooks/any/blue", headers={"x-clawbus-id": "one.b"})
    assert (await served.post("/hooks/any/blue", body, seen)).status_code == 202
    without = {name: value for name, value in seen.items() if name != "x-clawbus-id"}
    for path, headers, sent in (
        ("/hooks/any/blue", {**seen, "x-clawbus-id": "two"}, body),
        ("/hooks/any/blue", without, body),
        ("/hooks/any/red", seen, body),
        ("/hooks/ours", seen, body),
        ("/hooks/any/blue", {**seen, "x-clawbus-id": "one"}, b"b" + body),
    ):
        refused(await served.post(path, sent, headers), 401, "SIGNATURE_REFUSED")
    assert (await served.post("/hooks/any/blue", body, seen)).json()["duplicate"] is True


async def test_two_events_with_equal_bodies_in_the_same_second_are_two_messages(served: Served) -> None:
    for message_id in ("one", "two"):
        answer = await served.send(b'{"n":1}', x_clawbus_id=message_id)
        assert (answer.status_code, answer.json()["id"], answer.json()["duplicate"]) == (202, message_id, False)


async def test_a_request_without_an_id_is_its_own_duplicate_and_nothing_else(served: Served) -> None:
    seen = signed(b'{"n":1}')
    first, again = [await served.post("/hooks/ours", b'{"n":1}', seen) for _ in range(2)]
    assert (first.json()["duplicate"], again.json()["duplicate"]) == (False, True)
    refused(await served.post("/hooks/ours", b'{"n":1}', {**seen, "x-clawbus-id": "new"}), 401, "SIGNATURE_REFUSED")


async def test_a_refused_payload_burns_neither_signature_nor_id(served: Served) -> None:
    headers = signed(b'{"n":1}', headers={"x-clawbus-id": "one"})
    refused(await served.post("/hooks/ours", b'{"n":1}', {**headers, "content-type": "image/png"}), 415, "MEDIA_TYPE")
    served.bus.error = FileBusyError("locked")
    assert (await served.post("/hooks/ours", b'{"n":1}', headers)).status_code == 503
    served.bus.error = None
    answer = await served.post("/hooks/ours", b'{"n":1}', headers)
    assert (answer.status_code, answer.json()["duplicate"]) == (202, False)


@pytest.mark.parametrize(
    "path", ["/hooks/none", "/hooks/none/s", "/hooks", "/hooks/", "/", "/hooks/ours/s/t", "/hooks/%2e%2e"]
)
async def test_404(served: Served, path: str) -> None:
    refused(await served.send(path=path), 404, "UNKNOWN_HOOK")


async def test_a_stranger_cannot_tell_a_hooks_sessions_apart(served: Served) -> None:
    """Without the signature there is 404 for no hook and 401 for a hook, whatever else is wrong."""
    for path in ("/hooks/ours", "/hooks/ours/s", "/hooks/any", "/hooks/any/s", "/hooks/any/.."):
        for content_type in ("application/json", "image/png"):
            response = await served.post(path.replace("..", "%2e%2e"), b"{", {"content-type": content_type})
            refused(response, 401, "SIGNATURE_REFUSED")


@pytest.mark.parametrize("path", ["/hooks/ours/s", "/hooks/any"])
async def test_404_for_a_session_where_none_belongs_and_none_where_one_does(served: Served, path: str) -> None:
    refused(await served.send(path=path), 404, "UNKNOWN_HOOK")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_405(served: Served, method: str) -> None:
    response = await served.client.request(method, "/hooks/ours")
    refused(response, 405, "METHOD_REFUSED")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
        b"[" * 5000,
        b"\xef\xbb\xbf{}",
    ],
)
async def test_400_for_what_is_not_json(served: Served, body: bytes) -> None:
    refused(await served.send(body), 400, "BODY_INVALID")
    assert served.bus.messages == []


@pytest.mark.parametrize(
    "body", [b"", b"payload=%7B", b"payload=1&payload=2", b"other=%7B%7D", b"payload=%FF", b"\xff=1"]
)
async def test_400_for_a_form_that_is_not_githubs(served: Served, body: bytes) -> None:
    headers = from_github(body, content_type="application/x-www-form-urlencoded")
    refused(await served.post("/hooks/gh", body, headers), 400, "BODY_INVALID")


@pytest.mark.parametrize("message_id", ["../x", "a/b", "x" * 201, "a b", "", ".x"])
async def test_400_for_a_bad_id(served: Served, message_id: str) -> None:
    refused(await served.send(x_clawbus_id=message_id), 400, "INVALID_NAME")


async def test_400_for_a_bad_session_and_a_missing_delivery_id(served: Served) -> None:
    refused(await served.send(path="/hooks/any/%2e%2e"), 400, "INVALID_NAME")
    headers = from_github(b"{}")
    del headers["x-github-delivery"]
    refused(await served.post("/hooks/gh", b"{}", headers), 400, "BODY_INVALID")


async def test_408_for_a_slow_body(tmp_path: Path) -> None:
    async with impatient(tmp_path) as address, await anyio.connect_tcp(*address) as stream:
        head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"{}").items())
        await stream.send(f"POST /hooks/ours HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n{head}\r\n{{".encode())
        with anyio.fail_after(FAR):
            answer = b""
            try:
                while True:
                    answer += await stream.receive()
            except anyio.EndOfStream:
                pass  # it also ends the connection
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"BODY_TIMEOUT" in answer


async def test_409_for_a_known_id_with_other_content(served: Served) -> None:
    assert (await served.send(b'{"n":1}', x_clawbus_id="one")).status_code == 202
    refused(await served.send(b'{"n":2}', x_clawbus_id="one"), 409, "ID_CONFLICT")


async def test_413_by_the_declared_length_and_without_one(served: Served) -> None:
    big = b'"' + b"x" * 10_000 + b'"'
    refused(await served.send(big), 413, "BODY_TOO_LARGE")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(2000):
            yield b"x" * 1000

    response = await served.client.post("/hooks/ours", content=chunks(), headers=signed(big))
    assert "content-length" not in response.request.headers
    refused(response, 413, "BODY_TOO_LARGE")
    assert served.bus.messages == []


async def test_413_ends_an_endless_body(served: Served) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield b"x" * 65_536

    with anyio.fail_after(FAR):
        try:
            response = await served.client.post("/hooks/ours", content=endless(), headers=signed(b""))
            assert response.status_code == 413
        except httpx.TransportError:
            pass  # the connection was cut while it was still sending: that too is an end
    assert sent < 64 * 1024**2


async def test_a_declared_length_is_refused_before_the_body_is_asked_for(served: Served) -> None:
    """As curl does for a long body: it waits for a 100 before it sends."""
    assert served.channel.bound_address is not None
    async with await anyio.connect_tcp(*served.channel.bound_address) as stream:
        lines = [
            "POST /hooks/ours HTTP/1.1",
            "host: x",
            "content-length: 1000000",
            "expect: 100-continue",
            *(f"{name}: {value}" for name, value in signed(b"").items()),
        ]
        await stream.send("\r\n".join([*lines, "", ""]).encode())
        with anyio.fail_after(FAR):
            assert (await stream.receive()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("content_type", ["", "image/png", "application/xml", "multipart/mixed; boundary=x"])
async def test_415(served: Served, content_type: str) -> None:
    refused(await served.send(content_type=content_type), 415, "MEDIA_TYPE")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ContentError("content has 9 bytes; the limit is 8."), 413),
        (MessageError("kind 'x' is unknown."), 400),
    ],
)
async def test_what_the_bus_refuses_is_said(served: Served, error: ClawbusError, status: int) -> None:
    served.bus.error = error
    answer = refused(await served.send(), status, error.code)
    assert answer["error"]["message"] == str(error)
    assert answer["fix"] == error.hint


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IdConflictError("message id 'one' was used for other content in payroll/s."), 409),
        (UnknownAgentError("there is no agent 'a' (known: payroll)."), 404),
        (UnknownSessionError("there is no session payroll/s."), 404),
        (UnknownQuestionError("there is no question payroll."), 404),
        (QuestionClosedError("q was answered by payroll at noon."), 409),
        (AnswerForbiddenError("payroll may not answer q."), 403),
        (AnswerRefusedError("payroll is none."), 400),
    ],
)
async def test_a_refusal_names_nobody_and_no_command_of_the_host(
    served: Served, error: ClawbusError, status: int
) -> None:
    served.bus.error = error
    with structlog.testing.capture_logs() as logs:
        response = await served.send()
    refused(response, status, error.code)
    assert not [inner for inner in ("payroll", "clawbus", "agents.") if inner in response.text]
    assert [entry["error"] for entry in logs if entry["event"] == "webhook_refused"] == [str(error)]


@pytest.mark.parametrize("error", [StorageError("/var/lib/x: disk full"), FileBusyError("/var/lib/x locked")])
async def test_503_when_the_bus_cannot_store_now(served: Served, error: ClawbusError) -> None:
    served.bus.error = error
    response = await served.send()
    refused(response, 503, error.code)
    assert int(response.headers["retry-after"]) > 0
    assert "/var/lib" not in response.text
    served.bus.error = None
    assert (await served.send()).json() == {"ok": True, "id": (await served.send()).json()["id"], "duplicate": False}


async def test_500_says_nothing_of_the_inside(served: Served) -> None:
    served.bus.error = RuntimeError("a path, a query, a secret")
    with structlog.testing.capture_logs() as logs:
        response = await served.send()
    refused(response, 500, "INTERNAL")
    assert "secret" not in response.text
    assert "webhook_failed" in [entry["event"] for entry in logs]


async def test_what_is_not_http_harms_nobody(served: Served) -> None:
    assert served.channel.bound_address is not None
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100, b"x" * 100_000):
        async with await anyio.connect_tcp(*served.channel.bound_address) as stream:
            with anyio.move_on_after(0.5):
                try:
                    await stream.send(noise)
                    await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
    assert (await served.send()).status_code == 202


async def test_a_client_that_leaves_in_mid_body_stores_nothing(served: Served) -> None:
    assert served.channel.bound_address is not None
    async with await anyio.connect_tcp(*served.channel.bound_address) as stream:
        head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"{}").items())
        await stream.send(f"POST /hooks/ours HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n{head}\r\n{{".encode())
    assert (await served.send(b"[]")).status_code == 202
    assert len(served.bus.messages) == 1


# --- the listener ----------------------------------------------------------------------------------------------------


async def test_silent_connections_are_cut(tmp_path: Path) -> None:
    async with impatient(tmp_path) as address:
        for sent in (b"", b"POST /hooks/ours HTTP/1.1\r\nx-slow: "):
            async with await anyio.connect_tcp(*address) as stream:
                if sent:
                    await stream.send(sent)
                with anyio.fail_after(FAR), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()


async def test_over_the_limit_the_connection_that_waited_longest_makes_room(tmp_path: Path) -> None:
    channel: WebhookChannel = build(
        WebhookChannel,
        "webhook",
        table(max_connections=2, max_connections_per_peer=2),
        tmp_path,
        SetClock(),
    )
    with structlog.testing.capture_logs() as logs:
        async with running(channel):
            assert channel.bound_address is not None
            held = [await anyio.connect_tcp(*channel.bound_address) for _ in range(3)]
            with anyio.fail_after(FAR), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await held[0].receive()
            for stream in held[1:]:
                await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                with anyio.fail_after(FAR):
                    assert b" 404 " in await stream.receive()
            for stream in held:
                await stream.aclose()
    assert "webhook_connections_full" in [entry["event"] for entry in logs]


async def test_cancelling_ends_it_though_a_request_hangs(tmp_path: Path) -> None:
    channel: WebhookChannel = build(WebhookChannel, "webhook", table(), tmp_path, SetClock())
    bus = Bus()
    bus.gate = anyio.Event()
    statuses: list[int] = []

    async def post(url: str) -> None:
        async with httpx.AsyncClient(timeout=FAR) as client:
            statuses.append((await client.post(url, content=b"{}", headers=signed(b"{}"))).status_code)

    with anyio.fail_after(FAR):
        async with anyio.create_task_group() as clients, running(channel, bus):
            assert channel.bound_address is not None
            clients.start_soon(post, "http://{}:{}/hooks/ours".format(*channel.bound_address))
            await bus.entered.wait()
    assert statuses == [503]
    assert channel.bound_address is None


async def test_no_secret_is_logged(served: Served) -> None:
    with structlog.testing.capture_logs() as logs:
        await served.send()
        await served.post("/hooks/ours", b"{}", {"x-clawbus-signature": "sha256=guess"})
    assert {entry["event"] for entry in logs} == {"webhook_accepted", "webhook_refused"}
    assert SECRET not in str(logs)
    assert "sha256=" not in str([entry for entry in logs if entry["event"] == "webhook_refused"])


async def test_a_message_may_say_until_when_it_is_wanted(served: Served) -> None:
    for number, text in enumerate(("2126-11-21T02:00:00Z", "4950900000")):
        answer = await served.send(x_clawbus_id=f"id-{number}", x_clawbus_not_after=text)
        assert answer.status_code == 202
    assert {message.not_after for message in served.bus.messages} == {
        from_text("2126-11-21T02:00:00Z"),
        4_950_900_000_000,
    }
    refused = await served.send(x_clawbus_not_after="soon")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BODY_INVALID")
    assert refused.json()["fix"].startswith("Correct what the message names")


async def test_a_redelivery_of_what_failed_says_what_becomes_of_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"action":"opened"}'
    await served.post("/hooks/gh", body, from_github(body))
    again = await served.post("/hooks/gh", body, from_github(body))
    assert (again.json()["duplicate"], again.json()["state"]) == (True, "pending")
    served.bus.failed = True
    redelivered = (await served.post("/hooks/gh", body, from_github(body))).json()
    assert (redelivered["duplicate"], redelivered["previous"], redelivered["state"]) == (True, "failed", "pending")
    assert redelivered["requeued_as"] == redelivered["id"] + "+r1"


# --- files


async def test_a_form_s_files_go_with_its_message_and_a_redelivery_with_another_boundary_is_the_same(
    served: Served,
) -> None:
    for boundary in ("one", "two"):
        request = httpx.Request(
            "POST", "http://x/", data={"text": "look"}, files={"f": ("../report.pdf", b"%PDF-1.7", "image/png")},
            headers={"content-type": f"multipart/form-data; boundary={boundary}"},
        )  # fmt: skip
        body = request.read()
        answer = await served.send(body, content_type=request.headers["content-type"], x_clawbus_id="m1")
        assert answer.status_code == 202, answer.text
    [incoming] = served.bus.messages
    assert [(one.name, one.data) for one in incoming.files] == [("report.pdf", b"%PDF-1.7")]
    assert incoming.content == {
        "event": None, "headers": {"content-type": "multipart/form-data"}, "body": {"text": "look"},
    }  # fmt: skip
    assert answer.json()["duplicate"]


async def test_a_json_body_s_files_go_with_its_message(served: Served) -> None:
    body = {"text": "look", "files": [{"name": "a.txt", "data": "Zmlyc3Q=", "size": 5}]}
    assert (await served.send(json.dumps(body).encode())).status_code == 202
    [incoming] = served.bus.messages
    assert [(one.name, one.data) for one in incoming.files] == [("a.txt", b"first")]
    assert isinstance(incoming.content, dict)
    assert incoming.content["body"] == {"text": "look"}
    body["files"] = [{"name": "a.txt", "data": "Zmlyc3Q=", "size": 6}]
    refused(await served.send(json.dumps(body).encode()), 400, "BODY_INVALID")


async def test_a_form_is_not_parsed_before_its_signature_is_right(served: Served) -> None:
    headers = {**signed(b"--b"), "content-type": "multipart/form-data; boundary=b"}
    refused(await served.post("/hooks/ours", b"--b ", headers), 401, "SIGNATURE_REFUSED")
    refused(await served.post("/hooks/ours", b"--b", headers), 400, "BODY_INVALID")


async def test_files_beyond_the_limits_are_refused_with_413(served: Served) -> None:
    served.bus.error = AttachmentError("11 files are attached; limits.max_attachments is 10.")
    refused(await served.send(), 413, "ATTACHMENT_REFUSED")
