"""The webhook's way out against a real receiver: what it sends, and which answers are which kind of failure."""

from __future__ import annotations

import base64
import email
import email.policy
import gzip
import hashlib
import json
import logging
import random
import socket
import threading
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import structlog
from anyio.abc import SocketAttribute

from daemon.channels.protocol import InDoubt, Outgoing, Receipt
from daemon.channels.signatures import sign_at
from daemon.channels.webhook import WebhookChannel
from daemon.core.errors import PermanentDeliveryError, TransientDeliveryError
from daemon.core.sent_files import SentFile, SentFiles
from tests.support.channels import (
    NOW_MS,
    REPLY_SECRET,
    SECRET,
    Answer,
    Receiver,
    SetClock,
    build,
    closed_port,
    outgoing,
    receiver,
    resetting_receiver,
    running,
)

pytestmark = pytest.mark.anyio
JSON = {"content-type": "application/json"}


def channel_to(url: str, folder: Path, clock: SetClock | None = None, **settings: Any) -> WebhookChannel:
    hook = {"agent": "a", "session": "s", "secret": SECRET}
    hooks = {"me": {**hook, "reply_url": url, "reply_secret": REPLY_SECRET}, "mute": hook}
    table = {"listen": "127.0.0.1:0", "hooks": hooks, **settings}
    return build(WebhookChannel, "webhook", table, folder, clock or SetClock())


@pytest.fixture
async def app() -> AsyncGenerator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def channel(app: Receiver, tmp_path: Path) -> AsyncGenerator[WebhookChannel]:
    made = channel_to(app.url, tmp_path)
    async with running(made):
        yield made


def message(**changes: Any) -> Outgoing:
    return outgoing("webhook", **changes)


async def test_what_a_receiver_gets(app: Receiver, channel: WebhookChannel) -> None:
    await channel.deliver(message(content='{"text":"gr\\u00fc\\u00dfe"}'))
    (request,) = app.requests
    assert request.json == {
        "id": "out-1",
        "in_reply_to": "in-1",
        "agent": "a",
        "session": "s",
        "kind": "chat",
        "timestamp": "2026-11-21T02:20:32.123Z",
        "final": True,
        "content": {"text": "grüße"},
    }
    assert request.path == "/answers"
    headers = request.headers
    assert (headers["idempotency-key"], headers["content-type"]) == ("a/s/out-1", "application/json")
    assert headers["user-agent"].startswith("clawbus/")
    timestamp = int(headers["x-clawbus-timestamp"])
    assert timestamp == NOW_MS // 1000
    assert headers["x-clawbus-signature"] == sign_at(REPLY_SECRET.encode(), timestamp, request.body)


def sent_files(folder: Path) -> SentFiles:
    """A PNG with an odd name, and a file that was refused."""
    data = b"\x89PNG\r\n\x1a\nwith\r\n--boundary"
    path = folder / 'a "plot".png'
    path.write_bytes(data)
    one = SentFile(path.name, "image/png", len(data), hashlib.sha256(data).hexdigest(), str(path))
    return SentFiles((one,), (("link.txt", "is a link"),))


async def test_a_receiver_of_clawbus_s_own_json_gets_the_files_in_base64(
    app: Receiver, channel: WebhookChannel, tmp_path: Path
) -> None:
    files = sent_files(tmp_path)
    await channel.deliver(message(files=files))
    await channel.deliver(message(files=files, attempt=2))
    first, second = app.requests
    assert first.body == second.body
    [file] = first.json["files"]
    assert base64.b64decode(file["data"]) == Path(files.files[0].path).read_bytes()
    assert (file["name"], file["mimeType"], file["type"]) == ('a "plot".png', "image/png", "image")
    assert first.json["files_refused"] == [{"name": "link.txt", "reason": "is a link"}]
    timestamp = int(first.headers["x-clawbus-timestamp"])
    assert first.headers["x-clawbus-signature"] == sign_at(REPLY_SECRET.encode(), timestamp, first.body)


async def test_a_receiver_that_hangs_does_not_keep_other_receivers_from_their_files(
    app: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook whose hosts stand still, with many places: each has an answer with files, and tries it again and again."""
    files = sent_files(tmp_path)
    size = sum(one.size for one in files.files)
    monkeypatch.setattr("daemon.channels.webhook_out._FILE_BYTES", 4 * size)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as still:
        hook = {"agent": "a", "session": "s", "secret": SECRET, "reply_secret": REPLY_SECRET}
        hooks = {
            "still": {**hook, "reply_url": f"http://127.0.0.1:{still.getsockname()[1]}/"},
            "well": {**hook, "reply_url": app.url},
        }
        table = {"listen": "127.0.0.1:0", "hooks": hooks}
        made = build(WebhookChannel, "webhook", table, tmp_path, SetClock())

        async def again_and_again(number: int) -> None:
            while True:
                with suppress(TransientDeliveryError):
                    await made.deliver(outgoing("webhook", f"still:{number}", files=files))

        async with running(made), anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(again_and_again, number)
            await anyio.wait_all_tasks_blocked()
            for number in range(3):
                await made.deliver(outgoing("webhook", "well", message_out_id=f"out-{number}", files=files))
            tasks.cancel_scope.cancel()
    assert len(app.requests) == 3


async def test_discord_gets_the_files_as_a_form_that_a_mail_parser_reads(app: Receiver, tmp_path: Path) -> None:
    hooks = {"me": {"agent": "a", "session": "s", "secret": SECRET, "reply_url": app.url, "reply_format": "discord"}}
    files = sent_files(tmp_path)
    channel = channel_to(app.url, tmp_path, hooks=hooks)
    async with running(channel):
        await channel.deliver(message(content='{"text":"see"}', files=files))
        await channel.deliver(message(content='{"text":"see"}', files=files, attempt=2))
    first, second = app.requests
    assert (first.body, first.headers["content-type"]) == (second.body, second.headers["content-type"])
    head = f"Content-Type: {first.headers['content-type']}\r\n\r\n".encode()
    parsed = email.message_from_bytes(head + first.body, policy=email.policy.HTTP)
    payload, file = parsed.iter_parts()
    assert json.loads(payload.get_content())["content"] == "see\n[file not sent: link.txt is a link]"
    assert file.get_content() == Path(files.files[0].path).read_bytes()
    assert file.get_param("name", header="content-disposition") == "files[0]"
    assert file.get_filename() == "a %22plot%22.png"


@pytest.mark.parametrize("reply_format", ["slack", "teams", "body"])
async def test_a_service_that_takes_no_files_is_told_their_names(
    app: Receiver, tmp_path: Path, reply_format: str
) -> None:
    hook: dict[str, Any] = {
        "agent": "a", "session": "s", "secret": SECRET, "reply_url": app.url, "reply_format": reply_format,
    }  # fmt: skip
    if reply_format == "body":
        hook["reply_body"] = {"says": "{text}"}
    channel = channel_to(app.url, tmp_path, hooks={"me": hook})
    async with running(channel):
        await channel.deliver(message(content='{"text":"see"}', files=sent_files(tmp_path)))
    said = app.requests[-1].body.decode()
    assert 'file not sent here: a \\"plot\\".png, 24 bytes' in said
    assert "file not sent: link.txt is a link" in said


async def test_a_copy_that_is_gone_or_damaged_makes_a_dead_letter_and_sends_nothing(
    app: Receiver, channel: WebhookChannel, tmp_path: Path
) -> None:
    files = sent_files(tmp_path)
    Path(files.files[0].path).write_bytes(b"damaged")
    with pytest.raises(PermanentDeliveryError, match="damaged"):
        await channel.deliver(message(files=files))
    Path(files.files[0].path).unlink()
    with pytest.raises(PermanentDeliveryError, match="gone"):
        await channel.deliver(message(files=files))
    assert app.requests == []


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("echo/main/m1", "echo/main/m1"),
        ("a\r\nx-injected: 1", "a%0D%0Ax-injected:%201"),
        ("echo/Küche 1/m1", "echo/K%C3%BCche%201/m1"),
        ("echo/K%C3%BCche 1/m1", "echo/K%25C3%25BCche%201/m1"),
    ],
)
async def test_a_key_is_a_header_whatever_the_session_is_called(
    app: Receiver, channel: WebhookChannel, key: str, written: str
) -> None:
    await channel.deliver(message(key=key))
    assert app.requests[-1].headers["idempotency-key"] == written


async def test_a_very_long_key_is_its_digest(app: Receiver, channel: WebhookChannel) -> None:
    for last in "ab":
        await channel.deliver(message(key="é" * 300 + last))
    first, second = (post.headers["idempotency-key"] for post in app.requests[-2:])
    assert len(first) == len(second) == 64
    assert first != second


async def test_a_second_attempt_has_the_same_body_and_key_and_a_fresh_signature(app: Receiver, tmp_path: Path) -> None:
    clock = SetClock()
    channel = channel_to(app.url, tmp_path, clock)
    async with running(channel):
        await channel.deliver(message())
        clock.now += 3_600_000
        await channel.deliver(message(attempt=2))
    first, again = app.requests
    assert (first.body, first.headers["idempotency-key"]) == (again.body, again.headers["idempotency-key"])
    assert first.headers["x-clawbus-signature"] != again.headers["x-clawbus-signature"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(200), None),
        (Answer(204, body=b""), None),
        (Answer(202, {"x-message-id": "m-1"}), "m-1"),
        (Answer(200, JSON, b'{"id":"m-2"}'), "m-2"),
        (Answer(200, JSON, b'{"id":7}'), "7"),
        (Answer(200, JSON, b'{"id":true}'), None),
        (Answer(200, JSON, b'{"id":null}'), None),
        (Answer(200, JSON, b"[1]"), None),
        (Answer(200, JSON, b"{"), None),
        (Answer(200, JSON, b'{"id":"\\n"}'), None),
        (Answer(200, {"x-message-id": "x" * 201}), None),
        (Answer(200, JSON, b'{"id":"x","pad":"' + b"y" * 100_000 + b'"}'), None),
        (Answer(200, JSON, b"[" * 60_000), None),
    ],
)
async def test_any_2xx_is_a_receipt(
    app: Receiver, channel: WebhookChannel, answer: Answer, expected: str | None
) -> None:
    app.script.append(answer)
    assert await channel.deliver(message()) == Receipt(expected)


async def test_a_small_answer_that_unpacks_to_a_large_one_is_not_unpacked(
    app: Receiver, channel: WebhookChannel
) -> None:
    packed = gzip.compress(b'{"id":"' + bytes(50_000_000) + b'"}')
    app.script.append(Answer(200, {**JSON, "content-encoding": "gzip"}, packed))
    tracemalloc.start()
    try:
        assert await channel.deliver(message()) == Receipt(None)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


async def test_a_body_that_never_ends_does_not_undo_the_receipt(
    app: Receiver, channel: WebhookChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.channels.webhook_out._RESPONSE_S", 0.05)
    app.script.append(Answer(200, JSON, b'{"id":', stall_body=True))
    assert await channel.deliver(message()) == Receipt(None)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 507, 520])
async def test_transient_statuses(app: Receiver, channel: WebhookChannel, status: int) -> None:
    app.script.append(Answer(status))
    with pytest.raises(TransientDeliveryError, match=str(status)) as caught:
        await channel.deliver(message())
    assert caught.value.retry_after_s is None
    assert app.effects == []


@pytest.mark.parametrize(
    "status", [301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 410, 413, 415, 422, 451, 501, 505]
)
async def test_permanent_statuses(app: Receiver, channel: WebhookChannel, status: int) -> None:
    app.script.append(Answer(status, {"location": app.url}, b""))
    with pytest.raises(PermanentDeliveryError, match=str(status)):
        await channel.deliver(message())
    assert len(app.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), (formatdate(NOW_MS / 1000 + 60, usegmt=True), 60.0), ("99999999", 86_400.0), ("soon", None)],
)
async def test_retry_after_is_passed_on(
    app: Receiver, channel: WebhookChannel, value: str, seconds: float | None
) -> None:
    app.script.append(Answer(503, {"retry-after": value}))
    with pytest.raises(TransientDeliveryError) as caught:
        await channel.deliver(message())
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize("status", [400, 403, 404, 413, 423, 501])
async def test_a_refusal_that_names_a_time_to_wait_is_transient(
    app: Receiver, channel: WebhookChannel, status: int
) -> None:
    """As GitHub's 403 for too many requests, or a 413 whose limit is temporary (RFC 9110, 15.5.14)."""
    app.script.append(Answer(status, {"retry-after": "30"}))
    with pytest.raises(TransientDeliveryError, match=str(status)) as caught:
        await channel.deliver(message())
    assert caught.value.retry_after_s == 30.0


async def test_a_redirect_stays_permanent_with_a_time_to_wait(app: Receiver, channel: WebhookChannel) -> None:
    app.script.append(Answer(302, {"retry-after": "30"}))
    with pytest.raises(PermanentDeliveryError, match="302"):
        await channel.deliver(message())


async def test_a_reset_and_a_closed_port_are_transient(tmp_path: Path) -> None:
    async with resetting_receiver() as url:
        channel = channel_to(url, tmp_path)
        async with running(channel):
            with pytest.raises(TransientDeliveryError, match=r"ReadError|RemoteProtocolError"):
                await channel.deliver(message())
    channel = channel_to(f"http://127.0.0.1:{closed_port()}/", tmp_path)
    async with running(channel):
        with pytest.raises(TransientDeliveryError, match="ConnectError"):
            await channel.deliver(message())


@pytest.mark.parametrize("limit", ["read_timeout_s", "total_timeout_s"])
async def test_a_receiver_that_stalls_is_transient(app: Receiver, tmp_path: Path, limit: str) -> None:
    settings: dict[str, Any] = {limit: 0.05}
    channel = channel_to(app.url, tmp_path, None, **settings)
    app.script.append(Answer(stall=True))
    async with running(channel):
        with anyio.fail_after(60), pytest.raises(TransientDeliveryError, match=r"ReadTimeout|no answer within"):
            await channel.deliver(message())


async def test_the_connection_is_kept_and_a_failure_does_not_leak_it(app: Receiver, tmp_path: Path) -> None:
    channel = channel_to(app.url, tmp_path)
    async with running(channel):
        for number in range(150):  # more than httpx's pool holds
            app.script.append(Answer(500 if number % 2 else 200, JSON, b'{"x":1}'))
            try:
                await channel.deliver(message(message_out_id=f"out-{number}"))
            except TransientDeliveryError as error:
                assert "500" in str(error)  # noqa: PT017 - every second one fails
    assert len(app.requests) == 150


async def test_a_receivers_cookie_is_not_sent_back(app: Receiver, channel: WebhookChannel) -> None:
    app.script.append(Answer(200, {"set-cookie": "a=b; Path=/"}))
    await channel.deliver(message())
    await channel.deliver(message(message_out_id="out-2"))
    assert "cookie" not in app.requests[1].headers


async def test_no_reply_url_says_which_key_to_set(channel: WebhookChannel) -> None:
    with pytest.raises(PermanentDeliveryError, match=r"channels\.webhook\.hooks\.mute\.reply_url") as caught:
        await channel.deliver(outgoing("webhook", "mute"))
    assert "channels.webhook.hooks.mute.reply_url" in caught.value.hint


async def test_an_answer_for_a_hook_whose_table_was_removed_waits_for_it(channel: WebhookChannel) -> None:
    with pytest.raises(TransientDeliveryError, match="no hook 'gone'") as caught:
        await channel.deliver(outgoing("webhook", "gone"))
    assert "channels.webhook.hooks.gone" in caught.value.hint
    with pytest.raises(PermanentDeliveryError, match="no hook can be named"):
        await channel.deliver(outgoing("webhook", "no such hook"))


async def test_neither_the_address_nor_a_secret_is_told(
    app: Receiver, channel: WebhookChannel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app.script.extend([Answer(200), Answer(500), Answer(404)])
    told: list[str] = []
    with structlog.testing.capture_logs() as logs:
        for number in range(3):
            try:
                await channel.deliver(message(message_out_id=f"out-{number}"))
            except (TransientDeliveryError, PermanentDeliveryError) as error:
                told.append(f"{error} {error.hint}")
    assert len(told) == 2
    everything = f"{told} {logs} {caplog.text}"
    for secret in ("not-for-logs", "/answers", SECRET, REPLY_SECRET, "sha256="):
        assert secret not in everything


def test_capabilities_are_the_configured_ones(tmp_path: Path) -> None:
    channel = channel_to("http://127.0.0.1:1/", tmp_path)
    assert (channel.capabilities.deduplicates, channel.capabilities.in_doubt) == (False, InDoubt.RESEND)
    channel = channel_to("http://127.0.0.1:1/", tmp_path, receiver_deduplicates=True, in_doubt="hold")
    assert (channel.capabilities.deduplicates, channel.capabilities.in_doubt) == (True, InDoubt.HOLD)


async def test_sends_that_are_cancelled_at_random_moments_take_nothing_from_later_ones(tmp_path: Path) -> None:
    """In a bounded pool, a request that is cancelled just when it is given a slot keeps the slot forever."""
    rng = random.Random(11)
    answers = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    await stream.receive()
                    await answers.wait()
                    await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        made = channel_to(f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/", tmp_path)  # noqa: S610
        async with running(made):
            async with anyio.create_task_group() as sends:
                scopes = [anyio.CancelScope() for _ in range(300)]  # more than the slots of a pool as it comes

                async def cut(number: int) -> None:
                    with scopes[number], suppress(TransientDeliveryError):
                        await made.deliver(message(message_out_id=f"cut-{number}", key=f"a/s/cut-{number}"))

                for number in range(300):
                    sends.start_soon(cut, number)
                await anyio.wait_all_tasks_blocked()
                while scopes_left := [one for one in scopes if not one.cancel_called]:
                    for scope in rng.sample(scopes_left, min(len(scopes_left), rng.randint(1, 20))):
                        scope.cancel()
                    await anyio.lowlevel.checkpoint()
            answers.set()
            with anyio.fail_after(30):
                for number in range(30):
                    await made.deliver(message(message_out_id=f"late-{number}", key=f"a/s/late-{number}"))
            pool = made._out._pool
            assert pool is not None
            assert pool._current.under_way == 0
            # A connection that is neither in use nor idle is a slot that never comes back.
            assert all(one.is_idle() or one.is_closed() for one in pool._current.transport.pool.connections)
        tasks.cancel_scope.cancel()


async def test_a_pool_whose_connections_nobody_uses_is_replaced_and_the_send_succeeds(
    app: Receiver, channel: WebhookChannel
) -> None:
    await channel.deliver(message())
    pool = channel._out._pool
    assert pool is not None
    broken = pool._current
    origin = httpcore.URL(app.url).origin
    broken.transport.pool._connections += [broken.transport.pool.create_connection(origin) for _ in range(100)]
    with structlog.testing.capture_logs() as told:
        await channel.deliver(message(message_out_id="second", key="a/s/second"))
    assert pool.replaced == 1
    assert pool._current is not broken
    assert broken.client.is_closed
    assert [one["event"] for one in told if one["log_level"] == "warning"] == ["webhook_pool_replaced"]
    await channel.deliver(message(message_out_id="third", key="a/s/third"))
    assert pool.replaced == 1


async def test_a_pool_that_is_replaced_lets_its_sends_finish_first(channel: WebhookChannel) -> None:
    pool = channel._out._pool
    assert pool is not None
    async with pool.lease() as first:
        await pool._replace()
        assert not first.is_closed
        async with pool.lease() as second:
            assert second is not first
    assert first.is_closed
    assert not second.is_closed


async def test_a_receiver_whose_name_server_hangs_delays_no_other_receiver(
    app: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, release = socket.getaddrinfo, threading.Event()

    def asked(host: str, *more: Any, **named: Any) -> Any:
        if host == "hung.test":
            release.wait(60)
        return real("127.0.0.1" if host.endswith(".test") else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    hook = {"agent": "a", "session": "s", "secret": SECRET, "reply_secret": REPLY_SECRET}
    port = httpx.URL(app.url).port
    hooks = {name: {**hook, "reply_url": f"http://{name}.test:{port}/reply"} for name in ("hung", "good")}
    made: WebhookChannel = build(
        WebhookChannel,
        "webhook",
        {"listen": "127.0.0.1:0", "hooks": hooks, "connect_timeout_s": 30},
        tmp_path,
        SetClock(),
    )
    failed: list[Exception] = []
    async with running(made), anyio.create_task_group() as tasks:

        async def to_hung(number: int) -> None:
            try:
                await made.deliver(outgoing("webhook", "hung", message_out_id=f"h{number}", key=f"a/s/h{number}"))
            except TransientDeliveryError as error:
                failed.append(error)

        for number in range(40):
            tasks.start_soon(to_hung, number)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(20):
            for number in range(20):
                await made.deliver(outgoing("webhook", "good", message_out_id=f"g{number}", key=f"a/s/g{number}"))
        assert not failed
        release.set()
    assert not failed
