"""A wreck as its operator meets it: what `doctor` says, what `run` says, and the command that doctor names, run as it stands."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.daemon import RealDaemon, Said, eventually

Finding = dict[str, Any]


def findings(daemon: RealDaemon) -> dict[str, Finding]:
    """What doctor finds, by code; its exit code and envelope agree with that."""
    said = daemon.cli("doctor")
    result = said.envelope["result"]
    assert said.ok == (not result["diagnoses"])
    if not said.ok:
        assert said.error == "UNHEALTHY"
    return {one["code"]: one for one in result["diagnoses"]}


def found(daemon: RealDaemon, code: str, seconds: float = 20.0) -> Finding:
    """One finding, waited for: it has words, evidence and a command."""
    one = eventually(f"doctor finds {code}", lambda: findings(daemon).get(code), seconds)
    assert one["summary"]
    assert one["evidence"]
    assert one["command"]
    return one


def gone(daemon: RealDaemon, *codes: str, seconds: float = 30.0) -> None:
    """Doctor finds none of these any more."""
    eventually(f"doctor finds no {codes}", lambda: not set(codes) & set(findings(daemon)), seconds)


def healthy(daemon: RealDaemon, seconds: float = 30.0) -> None:
    """Doctor finds nothing at all."""
    last: list[dict[str, Finding]] = []

    def look() -> bool:
        last[:] = [findings(daemon)]
        return not last[0]

    try:
        eventually("doctor finds nothing", look, seconds)
    except AssertionError:
        raise AssertionError(f"doctor still finds: {last}") from None


def explained(daemon: RealDaemon, message_id: str, session: str = "prog/s") -> dict[str, Any]:
    """What `clawbus run show ID` says of a message's latest run."""
    return daemon.cli("run", "show", message_id, "--session", session).result


def codes(told: dict[str, Any]) -> list[str]:
    """What explains a run, by code."""
    return [one["code"] for one in told["diagnoses"]]


def repair(daemon: RealDaemon, command: str, by_hand: Mapping[str, Callable[[], None]] | None = None) -> Said | None:
    """Run the command that doctor named, as it stands. `clawbus serve` starts the daemon; what is no command of clawbus is
    done by `by_hand`, by how it begins."""
    for begins, act in (by_hand or {}).items():
        if command.startswith(begins):
            act()
            return None
    words = shlex.split(command)
    assert words[0] == "clawbus", f"nobody here can run: {command}"
    if words == ["clawbus", "--config", str(daemon.config), "serve"]:
        daemon.start()
        return None
    said = daemon.cli(*words[1:], timeout_s=120)
    assert said.ok, said.envelope
    return said


def mid_turn(daemon: RealDaemon, session: str = "s") -> tuple[str, Path]:
    """A message in the middle of its turn, noted by the host; its id and its mark. `<mark>.go` lets it end."""
    mark = daemon.root / f"mark-{session}"
    message_id = daemon.post(f"hang {mark}", agent="prog", session=session)
    eventually("in mid-turn", lambda: mark.exists() and mark.read_text(encoding="utf-8"))
    open_attempts = "SELECT 1 FROM attempts WHERE outcome IS NULL"
    eventually("noted", lambda: daemon.rows("prog", session, open_attempts))
    return message_id, mark


def evict(mark: Path) -> None:
    """The turn may end, this one's and its successor's."""
    mark.with_name(f"{mark.name}.go").touch()


def kill_container(daemon: RealDaemon, mark: Path | None = None, session: str = "s") -> None:
    """SIGKILL to everything in a process container; returns when all of it is gone."""
    pids = [daemon.leader("prog", session)]
    if mark is not None:
        pids += [int(pid) for pid in mark.read_text(encoding="utf-8").split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(pid), signal.SIGKILL)
    eventually("its processes are gone", lambda: not any(lives(pid) for pid in pids))


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def history(daemon: RealDaemon, message_id: str, session: str = "s") -> list[str]:
    """The events of a message, in order."""
    sql = f"SELECT event FROM message_history WHERE message_id = '{message_id}' ORDER BY id"
    return [row["event"] for row in daemon.rows("prog", session, sql)]
