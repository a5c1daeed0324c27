"""What every channel must do, checked for each built-in channel and the tests' fake.

A delivery ends with a receipt or an exception, and repeated deliveries with one key have one effect.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest

from daemon.channels.local import LocalChannel
from daemon.channels.protocol import Channel, ManyChannel, Outgoing, Receipt
from daemon.channels.webhook import WebhookChannel
from daemon.core.errors import ChannelError, ConfigError, PermanentDeliveryError, TransientDeliveryError
from tests.support.channels import (
    REPLY_SECRET,
    SECRET,
    Answer,
    Bus,
    Receiver,
    SetClock,
    build,
    outgoing,
    receiver,
    running,
)
from tests.support.fake_channel import FakeChannel

pytestmark = pytest.mark.anyio


@dataclass
class Case:
    """A running channel. `effects` returns the ids of the messages that it has handed over."""

    channel: Channel
    place: str
    effects: Callable[[], Any]
    bus: Bus
    receiver: Receiver | None = None

    def message(self, **changes: Any) -> Outgoing:
        return outgoing(self.channel.name, self.place, **changes)


@asynccontextmanager
async def local_case(folder: Path) -> AsyncGenerator[Case]:
    channel = build(LocalChannel, "local", {}, folder, SetClock())

    async def effects() -> list[str]:
        return [entry.message_out_id for entry in await channel.read("me", 0)]

    async with running(channel) as bus:
        yield Case(channel, "me", effects, bus)


def webhook_to(app: Receiver, folder: Path, total_timeout_s: float = 60.0) -> WebhookChannel:
    """Build a webhook channel whose answers go to `app`. The default timeout is far longer than any response takes."""
    hook = {"agent": "a", "session": "s", "secret": SECRET, "reply_url": app.url, "reply_secret": REPLY_SECRET}
    table = {
        "listen": "127.0.0.1:0",
        "receiver_deduplicates": True,
        "total_timeout_s": total_timeout_s,
        "hooks": {"me": hook},
    }
    return build(WebhookChannel, "webhook", table, folder, SetClock())


@asynccontextmanager
async def webhook_case(folder: Path) -> AsyncGenerator[Case]:
    async with receiver() as app:
        channel = webhook_to(app, folder)

        async def effects() -> list[str]:
            return [key.rpartition("/")[2] for key in app.effects]

        async with running(channel) as bus:
            yield Case(channel, "me", effects, bus, app)


@asynccontextmanager
async def fake_case(folder: Path) -> AsyncGenerator[Case]:
    channel = build(FakeChannel, "fake", {"deduplicates": True}, folder, SetClock())

    async def effects() -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [message.message_out_id for message in channel.sent]

    async with running(channel) as bus:
        yield Case(channel, "me", effects, bus)


CASES: Final = (
    pytest.param(local_case, id="local"),
    pytest.param(webhook_case, id="webhook"),
    pytest.param(fake_case, id="fake"),
)


@pytest.fixture(params=CASES)
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Case]:
    async with request.param(tmp_path) as made:
        yield made


async def test_a_delivery_has_a_receipt_and_an_effect(case: Case) -> None:
    assert isinstance(await case.channel.deliver(case.message()), Receipt)
    assert await case.effects() == ["out-1"]


async def test_one_key_has_one_effect(case: Case) -> None:
    assert case.channel.capabilities.deduplicates
    first = await case.channel.deliver(case.message())
    again = await case.channel.deliver(case.message(attempt=2))
    assert await case.effects() == ["out-1"]
    assert first.platform_message_id == again.platform_message_id


async def test_other_keys_have_effects_of_their_own(case: Case) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(case.channel.deliver, case.message(message_out_id=f"out-{number}"))
    assert sorted(await case.effects()) == sorted(f"out-{number}" for number in range(20))


@pytest.mark.parametrize("content", ["no JSON", '{"a": ', '{"a": "\ud800"}', "[" * 100_000])
async def test_what_cannot_be_handed_over_is_permanent(case: Case, content: str) -> None:
    with pytest.raises(PermanentDeliveryError):
        await case.channel.deliver(case.message(content=content))
    assert await case.effects() == []


async def test_an_unusable_place_is_permanent(case: Case) -> None:
    message = outgoing(case.channel.name, "no\nsuch place")
    with pytest.raises(PermanentDeliveryError):
        await case.channel.deliver(message)


async def test_a_cancelled_delivery_harms_no_later_one(case: Case) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await case.channel.deliver(case.message(message_out_id="cancelled"))
    await case.channel.deliver(case.message(message_out_id="after"))
    assert "after" in await case.effects()


@pytest.mark.parametrize("make", CASES)
async def test_started_means_serving_and_cancelling_ends_it(make: Callable[[Path], Any], tmp_path: Path) -> None:
    async with make(tmp_path) as case:
        await case.channel.deliver(case.message())
    assert getattr(case.channel, "bound_address", None) is None


async def test_a_channel_that_cannot_serve_does_not_report_started(tmp_path: Path) -> None:
    (tmp_path / "mailbox.db").write_bytes(b"not a database, and longer than SQLite's header" * 20)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(build(LocalChannel, "local", {}, tmp_path, SetClock())):
            pytest.fail("it started")
    assert caught.group_contains(ChannelError)


async def test_an_address_in_use_is_a_channel_error(tmp_path: Path) -> None:
    first = build(WebhookChannel, "webhook", {"listen": "127.0.0.1:0"}, tmp_path, SetClock())
    async with running(first):
        table = {"listen": f"127.0.0.1:{first.bound_address[1]}"}
        second = build(WebhookChannel, "webhook", table, tmp_path, SetClock())
        with pytest.raises(BaseExceptionGroup) as caught:
            async with running(second):
                pytest.fail("it started")
        assert caught.group_contains(ChannelError)


# --- a receiver across a network: late answers, lost answers ----------------------------------------------------------


@pytest.fixture
async def webhook(tmp_path: Path) -> AsyncGenerator[Case]:
    async with webhook_case(tmp_path) as made:
        yield made


async def test_a_late_response_is_a_receipt_and_a_missing_one_an_exception(webhook: Case, tmp_path: Path) -> None:
    assert webhook.receiver is not None
    gate = anyio.Event()
    webhook.receiver.script.append(
        Answer(gate=gate, body=b'{"id": "late"}', headers={"content-type": "application/json"})
    )
    got: list[Receipt] = []

    async def deliver() -> None:
        got.append(await webhook.channel.deliver(webhook.message()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliver)
        await webhook.receiver.arrived.wait()
        assert got == []
        gate.set()
    assert got == [Receipt("late")]

    webhook.receiver.script.append(Answer(stall=True))
    impatient = webhook_to(webhook.receiver, tmp_path, total_timeout_s=0.5)
    async with running(impatient):
        with pytest.raises(TransientDeliveryError, match=r"no answer within 0\.5 s"):
            await impatient.deliver(webhook.message(message_out_id="out-2"))


async def test_a_resend_after_a_lost_answer_has_one_effect(webhook: Case) -> None:
    assert webhook.receiver is not None
    webhook.receiver.script.append(Answer(stall=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(webhook.channel.deliver, webhook.message())
        await webhook.receiver.arrived.wait()  # it has had its effect, and the sender ends without the answer
        tasks.cancel_scope.cancel()
    await webhook.channel.deliver(webhook.message(attempt=2))
    assert len(webhook.receiver.requests) == 2
    assert await webhook.effects() == ["out-1"]


async def test_a_delivery_before_it_runs_is_put_off(tmp_path: Path) -> None:
    hook = {
        "agent": "a",
        "session": "s",
        "secret": SECRET,
        "reply_url": "http://127.0.0.1:1/",
        "reply_secret": REPLY_SECRET,
    }
    channel = build(WebhookChannel, "webhook", {"hooks": {"me": hook}}, tmp_path, SetClock())
    with pytest.raises(TransientDeliveryError, match="not running"):
        await channel.deliver(outgoing("webhook"))


async def test_the_mailbox_needs_no_run_to_take_a_delivery(tmp_path: Path) -> None:
    channel = build(LocalChannel, "local", {}, tmp_path, SetClock())
    assert await channel.deliver(outgoing()) == Receipt("1")


async def test_a_hook_takes_requests_as_soon_as_started(webhook: Case) -> None:
    host, port = webhook.channel.bound_address  # pyright: ignore[reportAttributeAccessIssue]
    async with httpx.AsyncClient() as client:
        response = await client.post(f"http://{host}:{port}/hooks/me", content=json.dumps({}))
    assert response.status_code == 401


def test_a_secret_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    hook = {"agent": "a", "session": "s", "secret_file": str(tmp_path / "none")}
    with pytest.raises(ConfigError, match=r"channels\.webhook\.hooks\.me\.secret_file"):
        build(WebhookChannel, "webhook", {"hooks": {"me": hook}}, tmp_path, SetClock())


async def test_a_batch_has_the_effects_of_single_deliveries(case: Case) -> None:
    channel = case.channel
    if not isinstance(channel, ManyChannel):
        pytest.skip("the channel delivers one message at a time")
    messages = [case.message(message_out_id=f"out-{number}", key=f"a/s/out-{number}") for number in range(5)]
    results = await channel.deliver_many(messages[:3])
    assert [type(result) for result in results] == [Receipt] * 3
    again = await channel.deliver_many(messages)
    assert list(again)[:3] == list(results), "the same keys have the same receipts"
    assert len(again) == 5
    assert await case.effects() == [message.message_out_id for message in messages]


async def test_a_batch_stops_at_the_first_refused_message(case: Case) -> None:
    channel = case.channel
    if not isinstance(channel, ManyChannel):
        pytest.skip("the channel delivers one message at a time")
    good, bad, later = (case.message(message_out_id=name, key=f"a/s/{name}") for name in ("good", "bad", "later"))
    bad = replace(bad, content="no JSON")
    results = await channel.deliver_many([good, bad, later])
    assert [type(result) for result in results] == [Receipt, PermanentDeliveryError]
    assert await case.effects() == ["good"]
