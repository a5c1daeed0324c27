"""Kills one agent in mid-turn, as a crash would: SIGKILL to everything in its container, behind the daemon's back."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from daemon.core.clock import SystemClock
from daemon.runtimes.process_table import living_members, send_signal
from demo.leftovers import leader_of
from demo.stage import DemoFailed, Stage, poll


def kill_in_mid_turn(stage: Stage, agent: str, session: str, message_id: str, timeout_s: float) -> tuple[str, int]:
    """Wait until the agent works on the message, then kill it. Returns (incarnation, epoch milliseconds)."""

    def claimed() -> Mapping[str, Any] | None:
        report = stage.session(agent, session)
        working = any(claim["message_id"] == message_id for claim in report["claims"])
        # The tool in flight says that the agent's own program has begun, not only the runner around it.
        begun = report["tool"] is not None and report["tool"]["name"] == "think"
        return report["incarnation"] if working and begun else None

    live = poll(f"{agent} to work on {message_id}", claimed, timeout_s)
    container = str(live["container_id"] or live["id"])
    at = SystemClock().now_ms()
    if stage.runtime == "docker":
        done = subprocess.run(
            ["docker", "kill", "--signal", "KILL", container], capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode != 0:
            raise DemoFailed(f"docker kill: {done.stderr.strip()}")
    else:
        _kill_processes(stage, container)
    return str(live["id"]), at


def _kill_processes(stage: Stage, container: str) -> None:
    leader = leader_of(stage.data / "run" / "process" / f"{container}.json")
    members = living_members(leader) if leader is not None else []
    if leader is None or not members:
        raise DemoFailed(f"no process of {container} lives")
    os.killpg(leader.pid, signal.SIGKILL)
    for member in members:
        send_signal(member, signal.SIGKILL)
