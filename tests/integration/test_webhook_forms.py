"""Other services' webhooks over real sockets: their signatures, written here once more, their ids and their forms."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import structlog

from daemon.channels.webhook import WebhookChannel
from daemon.channels.webhook_settings import Hook
from tests.integration.test_webhook_in import FAR, NOW_S, Served, refused, signed
from tests.support.channels import SECRET, Bus, SetClock, build, running

pytestmark = pytest.mark.anyio

Headers = dict[str, str]


def digest(*parts: bytes, secret: str = SECRET) -> bytes:
    return hmac.new(secret.encode(), b"".join(parts), hashlib.sha256).digest()


def gitlab(body: bytes, secret: str = SECRET, at: int = NOW_S) -> Headers:
    return {"x-gitlab-token": secret, "x-gitlab-event": "Push Hook", "idempotency-key": "key-1"}


def slack(body: bytes, secret: str = SECRET, at: int = NOW_S) -> Headers:
    made = digest(f"v0:{at}:".encode(), body, secret=secret).hex()
    return {"x-slack-signature": f"v0={made}", "x-slack-request-timestamp": str(at)}


def stripe(body: bytes, secret: str = SECRET, at: int = NOW_S) -> Headers:
    made = digest(f"{at}.".encode(), body, secret=secret).hex()
    return {"stripe-signature": f"t={at},v1={'0' * 64},v1={made},v0=old"}


def header(body: bytes, secret: str = SECRET, at: int = NOW_S) -> Headers:
    return {"x-shop-hmac": base64.b64encode(digest(body, secret=secret)).decode(), "x-shop-id": "shop/1"}


SIGN: dict[str, Callable[..., Headers]] = {"gitlab": gitlab, "slack": slack, "stripe": stripe, "hmac": header}
BODY = json.dumps({"id": "evt_1", "event_id": "Ev123", "n": 1}).encode()
IDS = {"gitlab": "key-1", "slack": "Ev123", "stripe": "evt_1", "hmac": "id-" + hashlib.sha256(b"shop/1").hexdigest()}


def hooks() -> dict[str, Any]:
    common = {"agent": "a", "session": "s", "secret": SECRET}
    more: dict[str, dict[str, Any]] = {"hmac": {"signature_header": "X-Shop-Hmac", "id_header": "X-Shop-Id"}}
    found = {name: {**common, "signature": name, **more.get(name, {})} for name in SIGN}
    plain = {**common, "signature": "hmac", "signature_header": "x-sig"}
    return {**found, "plain": plain, "raw": {**common, "keep_raw": True}, "ours": common}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncGenerator[Served]:
    clock = SetClock()
    settings = {"listen": "127.0.0.1:0", "hooks": hooks()}
    channel: WebhookChannel = build(WebhookChannel, "webhook", settings, tmp_path, clock)
    async with running(channel, Bus()) as bus:
        assert channel.bound_address is not None
        base = "http://{}:{}".format(*channel.bound_address)
        async with httpx.AsyncClient(base_url=base, timeout=FAR) as client:
            yield Served(channel, bus, client, clock)


def last(served: Served) -> dict[str, Any]:
    """The content of the newest message."""
    return cast("dict[str, Any]", served.bus.messages[-1].content)


async def send(served: Served, name: str, body: bytes = BODY, **changes: Any) -> httpx.Response:
    more = changes.pop("headers", {})
    return await served.post(
        f"/hooks/{name}", body, {"content-type": "application/json", **SIGN[name](body, **changes), **more}
    )


@pytest.mark.parametrize("name", SIGN)
async def test_a_signed_request_becomes_a_message_under_the_sender_s_id(served: Served, name: str) -> None:
    answer = await send(served, name)
    assert (answer.status_code, answer.json()["id"]) == (202, IDS[name])
    assert len(served.bus.messages) == 1
    assert last(served)["body"] == json.loads(BODY)
    assert last(served)["event"] == ("Push Hook" if name == "gitlab" else None)


@pytest.mark.parametrize("name", SIGN)
async def test_what_is_not_signed_with_the_secret_is_refused(served: Served, name: str) -> None:
    refused(await send(served, name, secret="another-secret"), 401, "SIGNATURE_REFUSED")
    given = SIGN[name](BODY)
    if name != "gitlab":  # whose token is about no body
        refused(await served.post(f"/hooks/{name}", BODY + b" ", given), 401, "SIGNATURE_REFUSED")
    refused(await served.post(f"/hooks/{name}", BODY, {}), 401, "SIGNATURE_REFUSED")
    for key in given:
        if "key" not in key and "id" not in key and "event" not in key:
            for wrong in ("", "x", "v0=", "sha256=", "t=1", "\u00ff"):
                headers = {**given, key: wrong}
                encoded = [(one.encode(), text.encode("latin-1")) for one, text in headers.items()]
                answer = await served.client.post(f"/hooks/{name}", content=BODY, headers=encoded)
                refused(answer, 401, "SIGNATURE_REFUSED")
    assert served.bus.messages == []


@pytest.mark.parametrize("name", ["slack", "stripe"])
@pytest.mark.parametrize("offset", [-301, 301])
async def test_a_dated_signature_has_an_end(served: Served, name: str, offset: int) -> None:
    refused(await send(served, name, at=NOW_S + offset), 401, "SIGNATURE_REFUSED")


async def test_a_redelivery_has_the_same_id_though_it_is_signed_again(served: Served) -> None:
    for name in ("slack", "stripe"):
        first = await send(served, name)
        again = await send(served, name, at=NOW_S + 60)
        assert again.json()["id"] == first.json()["id"] == IDS[name]


async def test_gitlab_without_a_key_is_known_by_event_and_body(served: Served) -> None:
    ids = set[str]()
    for body in (b'{"n":1}', b'{"n":2}', b'{"n":1}'):
        headers = {"content-type": "application/json", "x-gitlab-token": SECRET, "x-gitlab-event-uuid": "13792a34"}
        ids.add((await served.post("/hooks/gitlab", body, headers)).json()["id"])
    assert len(ids) == 2
    assert all(one.startswith("13792a34-") for one in ids)


async def test_slack_s_check_of_a_new_address_is_answered_and_stores_nothing(served: Served) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "3eZbrw1a"}).encode()
    answer = await send(served, "slack", body)
    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1a"})
    refused(await send(served, "slack", body, secret="another-secret"), 401, "SIGNATURE_REFUSED")
    assert served.bus.messages == []


@pytest.mark.parametrize("shape", ["{hex}", "sha256={hex}", "{HEX}", "{base64}"])
async def test_a_header_s_hmac_is_hex_or_base64(served: Served, shape: str) -> None:
    made = digest(BODY)
    text = shape.format(hex=made.hex(), HEX=made.hex().upper(), base64=base64.b64encode(made).decode())
    answer = await served.post("/hooks/plain", BODY, {"content-type": "application/json", "x-sig": text})
    assert (answer.status_code, answer.json()["id"]) == (202, "body-" + hashlib.sha256(BODY).hexdigest())


async def test_a_form_s_fields_are_an_object(served: Served) -> None:
    body = b"command=%2Fweather&text=94070%20%C3%A9&empty=&tag=a&tag=b"
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert (await send(served, "slack", body, headers=headers)).status_code == 202
    assert last(served)["body"] == {
        "command": "/weather", "text": "94070 \u00e9", "empty": "", "tag": ["a", "b"],
    }  # fmt: skip
    assert (await send(served, "slack", b"payload=%7B%22n%22%3A1%7D", headers=headers)).status_code == 202
    assert last(served)["body"] == {"n": 1}
    for wrong in (b"a=%FF", b"\xff=1", b"a", b"&".join(b"f%d=1" % n for n in range(1001))):
        refused(await send(served, "slack", wrong, headers=headers), 400, "BODY_INVALID")


@pytest.mark.parametrize("body", [b'{"n": 0.1000000000000000055, "n": 1e2}', b' [ 1.0 , "\xc3\xa9" ]\n'])
async def test_the_raw_body_is_kept_where_it_is_asked_for(served: Served, body: bytes) -> None:
    path = "/hooks/raw"
    assert (await served.post(path, body, signed(body, path=path))).status_code == 202
    assert last(served)["raw"].encode() == body
    assert (await served.send(body)).status_code == 202
    assert "raw" not in last(served)


@pytest.mark.parametrize(
    "keys",
    [
        {"signature": "hmac"}, {"signature_header": "x-a"}, {"id_header": "x-a"}, {"signature": "gitlab", "id_header": "x"},
        {"signature": "hmac", "signature_header": "no header"}, {"signature": "gitea"},
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"signature|header"):
        Hook.model_validate({"agent": "a", "session": "s", "secret": SECRET, **keys})


async def test_a_flood_of_refusals_does_not_turn_the_log_over(served: Served) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            refused(await served.post("/hooks/plain", b"{}", {}), 401, "SIGNATURE_REFUSED")
        served.clock.now += 61_000
        refused(await served.post("/hooks/plain", b"{}", {}), 401, "SIGNATURE_REFUSED")
    lines = [one for one in logs if one["event"] == "webhook_refused"]
    assert len(lines) == 61
    assert lines[-1]["unlogged_before"] == 40
