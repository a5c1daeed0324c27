"""docs/channels.md does what it says: its snippets run, its example channel works, its tables list every key."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncGenerator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

from daemon.channels.registry import GROUP, build_channels, find_types
from daemon.channels.signatures import sign_at
from daemon.channels.webhook import WebhookChannel
from daemon.channels.webhook_settings import Hook, WebhookSettings
from daemon.config.agents import Agent
from daemon.config.models import Config
from daemon.core.clock import SystemClock
from daemon.core.errors import PermanentDeliveryError
from tests.support.channels import SECRET, Bus, build, outgoing, running

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "examples"
TEXT: Final = (ROOT / "docs/channels.md").read_text(encoding="utf-8")
FAR: Final = 30.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def block(language: str, marker: str) -> str:
    (found,) = [text for text in blocks(language) if marker in text]
    return found


@pytest.fixture
async def served(tmp_path: Path) -> AsyncGenerator[tuple[str, Bus]]:
    hooks = {"deploy": {"agent": "ops", "session": "deploys", "secret": SECRET}}
    # The snippets take the time from the machine, so the channel does too.
    channel = build(WebhookChannel, "webhook", {"listen": "127.0.0.1:0", "hooks": hooks}, tmp_path, SystemClock())
    async with running(channel) as bus:
        yield "http://{}:{}".format(*channel.bound_address), bus


async def run(command: list[str], url: str) -> dict[str, Any]:
    environment = {"PATH": os.environ["PATH"], "SECRET": SECRET, "URL": url, "no_proxy": "*"}

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=FAR, check=False)

    done = await anyio.to_thread.run_sync(call)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.anyio
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl")
async def test_the_curl_snippet(served: tuple[str, Bus]) -> None:
    url, bus = served
    printed = await run(["bash", "-euc", block("sh", "openssl")], url)
    assert printed == {"ok": True, "id": "deploy-4711", "duplicate": False}
    assert json.dumps(printed, separators=(",", ":")) in TEXT
    content: Any = bus.messages[0].content
    assert content["body"] == {"text": "deploy finished"}


@pytest.mark.anyio
async def test_the_python_snippet(served: tuple[str, Bus]) -> None:
    url, bus = served
    printed = await run([sys.executable, str(EXAMPLES / "webhook/send.py")], url)
    assert printed == {"ok": True, "id": "deploy-4712", "duplicate": False}
    assert len(bus.messages) == 1


def test_the_receivers_check() -> None:
    names: dict[str, Any] = {}
    exec(block("python", "is_from_clawbus"), names)  # noqa: S102 - our own document
    check, body, now = names["is_from_clawbus"], b'{"id":"x"}', SystemClock().now_ms() // 1000

    def headers(at: int) -> dict[str, str]:
        return {"X-Clawbus-Timestamp": str(at), "X-Clawbus-Signature": sign_at(SECRET.encode(), at, body)}

    assert check(SECRET.encode(), headers(now), body)
    assert not check(SECRET.encode(), headers(now), body + b" ")
    assert not check(SECRET.encode(), headers(now - 400), body)


@pytest.mark.parametrize(("model", "heading"), [(WebhookSettings, "[channels.webhook]"), (Hook, "hooks.NAME]")])
def test_every_key_is_described_and_no_other(model: type[BaseModel], heading: str) -> None:
    rows = TEXT[TEXT.index(f"{heading}` | default") :].split("\n\n")[0].splitlines()[2:]
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert described == set(model.model_fields)


def test_defaults_are_the_real_ones() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", TEXT, re.MULTILINE))
    fields = {**WebhookSettings.model_fields, **Hook.model_fields}
    assert len(rows) == 19
    for name, told in rows.items():
        default = fields[name].default
        assert told == (
            str(default).lower()
            if isinstance(default, bool)
            else f"{default:g}"
            if isinstance(default, float)
            else str(default)
        )


def test_the_example_tables_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = tomllib.loads(block("toml", "DEPLOY_HOOK_SECRET"))["channels"]
    monkeypatch.setenv("DEPLOY_HOOK_SECRET", SECRET)
    for number, hook in enumerate(tables["webhook"]["hooks"].values()):
        for key in ("secret_file", "reply_secret_file"):
            if key in hook:
                file = tmp_path / f"{key}-{number}"
                file.write_text(f"{SECRET} {key}\n")
                hook[key] = str(file)
    agents = {hook["agent"]: Agent() for hook in tables["webhook"]["hooks"].values()}
    config = Config(data_dir=tmp_path, agents=agents, channels=tables)
    assert set(build_channels(config, SystemClock())) == {"local", "webhook"}


@pytest.mark.anyio
async def test_the_example_channel_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "channel")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    project = tomllib.loads((EXAMPLES / "channel/pyproject.toml").read_text())["project"]
    types = {**find_types(), "spool": EntryPoint("spool", project["entry-points"][GROUP]["spool"], GROUP)}
    table = tomllib.loads((EXAMPLES / "channel/clawbus.toml").read_text())["channels"]["spool"]
    table["folder"] = str(tmp_path / "spool")
    channel = build_channels(Config(data_dir=tmp_path, channels={"spool": table}), SystemClock(), types)["spool"]

    inbox, outbox = tmp_path / "spool/in", tmp_path / "spool/out"
    inbox.mkdir(parents=True)
    (inbox / "first.json").write_text('{"text":"before it ran"}')
    with anyio.fail_after(FAR):
        async with running(channel) as bus:
            assert [message.message_id for message in bus.messages] == ["first"]
            (inbox / "second.tmp").write_text('{"text":"while it runs"}')
            (inbox / "second.tmp").rename(inbox / "second.json")
            while len(bus.messages) < 2 or list(inbox.iterdir()):  # noqa: ASYNC110 - a poll with a deadline
                await anyio.sleep(0.01)
            for attempt in (1, 2):
                await channel.deliver(outgoing("spool", "out", attempt=attempt))
            with pytest.raises(PermanentDeliveryError):
                await channel.deliver(outgoing("spool", "../elsewhere"))
    (answer,) = outbox.iterdir()
    assert json.loads(answer.read_text()) == {"in_reply_to": "in-1", "content": {"text": "hello"}}
