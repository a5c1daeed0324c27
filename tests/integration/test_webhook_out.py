"""The webhook's way out against a real receiver: what it sends, and which answers are which kind of failure."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import structlog

from daemon.channels.protocol import InDoubt, Outgoing, Receipt
from daemon.channels.signatures import sign_at
from daemon.channels.webhook import WebhookChannel
from daemon.errors import PermanentDeliveryError, TransientDeliveryError
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
        "content": {"text": "grüße"},
    }
    assert request.path == "/answers"
    headers = request.headers
    assert (headers["idempotency-key"], headers["content-type"]) == ("a/s/out-1", "application/json")
    assert headers["user-agent"].startswith("clawbus/")
    timestamp = int(headers["x-clawbus-timestamp"])
    assert timestamp == NOW_MS // 1000
    assert headers["x-clawbus-signature"] == sign_at(REPLY_SECRET.encode(), timestamp, request.body)


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
    started = time.monotonic()
    async with running(channel):
        with pytest.raises(TransientDeliveryError, match=r"ReadTimeout|no answer within"):
            await channel.deliver(message())
    assert time.monotonic() - started < 10


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
    with pytest.raises(PermanentDeliveryError, match="no hook 'gone'"):
        await channel.deliver(outgoing("webhook", "gone"))


@pytest.mark.parametrize("key", ["", "a\r\nx-injected: 1", "é", "x" * 513])
async def test_a_key_that_is_no_header_value_is_permanent(app: Receiver, channel: WebhookChannel, key: str) -> None:
    with pytest.raises(PermanentDeliveryError):
        await channel.deliver(message(key=key))
    assert app.requests == []


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
