"""What an ACP agent costs beside the built-in echo: a turn's time beyond the agent's own, and twenty agents that are silent.

The agent (`acp_agent.py`) answers at once, so its own time is nothing, and the difference to echo is what the protocol adds: the
prompt, the first update, the end of the turn. Both are asked in small blocks in turn, in one daemon.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Final

from bench.figures import Figure, Of, Result, Target
from bench.round_trip import Asked
from bench.settings import Settings
from bench.spread import noise, spread
from bench.stage import ECHO, BenchFailed, BenchStage
from daemon.api.client import ControlClient

_BLOCKS: Final = 20
_PER_BLOCK: Final = 20
_LIVE: Final = 20
_WINDOW_S: Final = 20.0
_SETTLE_S: Final = 3.0
_ANSWER_S: Final = 60.0
_AGENT: Final = "speaks"
_NOTE: Final = (
    "What a turn adds is the whole turn beside echo's, from the client's POST to the answer: more than the way from prompt to first"
    " update, which the target speaks of. The processor time of silent agents is the daemon's and the runners'; the floor is the"
    " daemon without any container."
)


def measure(settings: Settings) -> Result:
    """Turns in turn, then a window of silence without containers and with twenty."""
    agent = json.dumps([sys.executable, "-I", "-S", str(Path(__file__).with_name("acp_agent.py"))])
    tables = f'max_containers = {_LIVE + 5}\n[agents.{_AGENT}]\nprovider = "acp"\ncommand = {agent}\n'
    count, live = settings.count(_BLOCKS, 2), settings.count(_LIVE, 2)
    blocks: dict[str, list[list[float]]] = {ECHO: [], _AGENT: []}
    with BenchStage(settings.folder, tables=tables) as stage:
        stage.start()
        with stage.client() as client:
            quiet = _share(stage, settings)
            for number in range(1 + count):
                for name, found in blocks.items():
                    block = [_ask(client, name, "s").took for _ in range(settings.count(_PER_BLOCK, 3))]
                    if number:  # the first is the warm-up
                        found.append(block)
            for number in range(live):
                _ask(client, _AGENT, f"s{number}")
            silent = _share(stage, settings)
    floor, value = (spread([one for block in found for one in block]) for found in blocks.values())
    half = f"{value.count} of them, half {value.quarter:.2f} .. {value.three_quarters:.2f}"
    return Result(
        figures=(
            Figure("a turn: added by ACP, p50", value.p50 - floor.p50, "ms", None, Target(Of.VALUE, 20.0)),
            Figure("a turn with an ACP agent, p50", value.p50, "ms", floor.p50, spread=half),
            Figure("a turn with an ACP agent, p99", value.p99, "ms", floor.p99),
            Figure(f"{live} silent ACP agents: share of a core", 100 * silent, "%", 100 * quiet, Target(Of.VALUE, 2.0)),
        ),
        notes=(_NOTE,),
        noisy=noise(blocks[ECHO]),
    )  # fmt: skip


def _ask(client: ControlClient, agent: str, session: str) -> Asked:
    """Ask, and wait for the answer. Raise BenchFailed if none came."""
    sent_at, began = time.time() * 1000, time.perf_counter()
    address = {"channel_type": "local", "platform_id": "bench"}
    message = {"agent": agent, "session": session, "content": {"text": "hello"}, "address": address}
    message_id = str(client.accept(message)["message_id"])
    entry = client.wait_reply(agent, session, message_id, _ANSWER_S)
    if entry is None or "error" in json.loads(entry.content):
        raise BenchFailed(f"{agent} gave no answer: {entry.content if entry is not None else 'nothing came'}")
    return Asked(message_id, sent_at, (time.perf_counter() - began) * 1000)


def _share(stage: BenchStage, settings: Settings) -> float:
    """Return the share of a core that daemon and runners use while nothing happens."""
    time.sleep(_SETTLE_S * min(1.0, settings.scale))
    began, before = time.monotonic(), stage.usage().cpu_s + stage.agents_usage().cpu_s
    time.sleep(_WINDOW_S * min(1.0, settings.scale))
    return (stage.usage().cpu_s + stage.agents_usage().cpu_s - before) / (time.monotonic() - began)
