"""The verdict on a deploy and on what serves, with its exit code. Pure."""

from __future__ import annotations

from collections.abc import Collection

from daemon.core.slots import UNKNOWN, SlotState


def verdict(state: SlotState) -> tuple[str, int]:
    """Return (verdict, exit code) of the latest deploy: pass 0; fail, aborted and rolled_back 1; hold 75."""
    deploy = state.deploy
    if deploy is None or deploy.state == "passed":
        return "pass", 0
    if not deploy.is_over:
        return "hold", 75
    return (deploy.state if deploy.state in {"aborted", "rolled_back"} else "fail"), 1


def runtime_verdict(state: SlotState, standing: Collection[str]) -> tuple[str, int]:
    """Return (verdict, exit code) of what serves now. `standing` are the results of the standing conditions.

    An abort proves nothing against what serves, so after one only the standing conditions count. A condition that could
    not be checked is `unknown`: it is never a pass.
    """
    deploy = state.deploy
    word, code = ("pass", 0) if deploy is not None and deploy.state == "aborted" else verdict(state)
    if word == "pass" and "fail" in standing:
        return "fail", 1
    return (UNKNOWN, 75) if word == "pass" and UNKNOWN in standing else (word, code)
