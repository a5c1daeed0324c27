"""The verdict on a deploy and on what serves, with its exit code. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from daemon.core.slots import UNKNOWN, Deploy, SlotState

_SLACK_S: Final = 60.0  # beyond a gate's limit: daemons start again meanwhile


def verdict(state: SlotState) -> tuple[str, int]:
    """Return (verdict, exit code) of the latest deploy: pass 0; fail, aborted and rolled_back 1; hold 75."""
    deploy = state.deploy
    if deploy is None or deploy.state == "passed":
        return "pass", 0
    if not deploy.is_over:
        return "hold", 75
    return (deploy.state if deploy.state in {"aborted", "rolled_back"} else "fail"), 1


def without_daemon(deploy: Deploy, now: int) -> Deploy:
    """Return the deploy as it stands where no daemon answers: a gate that is past its limit has failed, as nobody ends it."""
    running = next((one for one in deploy.gates if one.status == "running"), None)
    if running is None or running.since is None:
        return deploy
    limit_s = float(running.limit.get("limit_s") or running.limit.get("window_s") or 0) + _SLACK_S
    past_s = (now - running.since) / 1000
    if past_s <= limit_s:
        return deploy
    return deploy.with_gate(
        running.name, status="fail", reason=f"it began {past_s:.0f} s ago, and no daemon answers that could end it"
    )


def runtime_verdict(state: SlotState, standing: Collection[str]) -> tuple[str, int]:
    """Return (verdict, exit code) of what serves now. `standing` are the results of the standing conditions.

    A deploy under way with a gate that has failed stands still (`without_daemon`). An abort proves nothing against what serves, so after one only the standing conditions count. A condition that could
    not be checked is `unknown`: it is never a pass.
    """
    deploy = state.deploy
    word, code = ("pass", 0) if deploy is not None and deploy.state == "aborted" else verdict(state)
    if word == "hold" and deploy is not None and any(one.status == "fail" for one in deploy.gates):
        return "fail", 1
    if word == "pass" and "fail" in standing:
        return "fail", 1
    return (UNKNOWN, 75) if word == "pass" and UNKNOWN in standing else (word, code)
