"""Containers that only look alive while another session waits for a slot: beats, and nothing behind them."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually

Make = Callable[..., RealDaemon]
BEAT_S = 0.2


@contextmanager
def beating(paths: list[Path], ahead_s: float) -> Iterator[None]:
    """Date these heartbeats `ahead_s` from now, again and again."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path, (time.time(), time.time() + ahead_s))

    beater = threading.Thread(target=beat)
    beater.start()
    try:
        yield
    finally:
        over.set()
        beater.join()


def heartbeats(daemon: RealDaemon, *sessions: str) -> list[Path]:
    return [daemon.folder("prog", session) / "out" / ".heartbeat" for session in sessions]


def test_two_that_beat_and_never_finish_lose_their_slots_and_doctor_names_them(make_daemon: Make) -> None:
    daemon = make_daemon(
        obedient(timeout_s=4.0) + ECHO,
        runtime_keys="max_containers = 2",
        sweep_keys="claim_stuck_s = 12.0\nceiling_s = 60.0\nmax_declared_s = 10.0",
    )
    # Until the doctor has been asked nobody loses a slot, however long that takes here.
    daemon.start(environment={"CLAWBUS_SWEEP__CLAIM_STUCK_S": "3600", "CLAWBUS_SWEEP__CEILING_S": "7200"})
    held = {}
    for name in ("h1", "h2"):
        mark = daemon.root / name
        held[name] = daemon.post(f"hang {mark}", agent="prog", session=name)
        eventually("in mid-turn", lambda path=mark: path.exists() and path.read_text())
        os.kill(int(mark.read_text().split()[1]), signal.SIGSTOP)
    with beating(heartbeats(daemon, "h1", "h2"), 0.0):
        waits = daemon.post("hello", agent="echo", session="third")

        def named() -> str | None:
            found = daemon.cli("doctor").envelope["result"]["diagnoses"]
            told = [" ".join(one["evidence"]) for one in found if one["code"] == "WORK_WAITING"]
            return told[0] if told else None

        told = eventually("doctor says who holds the slots", named, 90)
        for name, message_id in held.items():
            assert f"prog/{name} works on message {message_id} for " in told
        daemon.stop()
        daemon.start()
        assert "hello" in str(daemon.answer(waits, agent="echo", session="third", wait_s=60))
    stuck = daemon.events("container_stuck")
    assert {one["reason"] for one in stuck} == {"claim_overdue"}
    assert {one["session"] for one in stuck} <= {"h1", "h2"}
    for name, message_id in held.items():
        (daemon.root / f"{name}.go").touch()
        assert daemon.answer(message_id, agent="prog", session=name) == {"text": "done"}


def test_two_idle_ones_that_beat_ahead_of_the_clock_make_room_at_once(make_daemon: Make) -> None:
    daemon = make_daemon(obedient() + ECHO, runtime_keys="max_containers = 2\nidle_stop_s = 3600.0")
    daemon.start()
    for name in ("i1", "i2"):
        daemon.ask("say done", agent="prog", session=name)
    with beating(heartbeats(daemon, "i1", "i2"), 50.0):
        assert "hello" in str(daemon.ask("hello", agent="echo", session="third"))
    assert [one["reason"] for one in daemon.events("container_evicted")] == ["evicted"]
    daemon.at_rest = True


def test_an_idle_one_that_beats_is_stopped_after_its_time(make_daemon: Make) -> None:
    daemon = make_daemon(obedient(), runtime_keys="idle_stop_s = 2.0")
    daemon.start()
    daemon.ask("say done", agent="prog", session="i1")
    with beating(heartbeats(daemon, "i1"), 50.0):
        eventually("stopped", lambda: daemon.running("prog", "i1") is None, 90)
    assert daemon.events("container_stuck") == []


def test_an_idle_one_is_never_stuck(make_daemon: Make) -> None:
    """`idle_stop_s` above `ceiling_s` keeps agents warm: silence with nothing to do is no stall."""
    daemon = make_daemon(obedient(), runtime_keys="idle_stop_s = 60.0", sweep_keys="ceiling_s = 1.0")
    daemon.start()
    daemon.ask("say done", agent="prog", session="warm")
    before = daemon.container("prog", "warm")
    swept = daemon.status()["live"]["last_sweep"]["at"]
    eventually("swept, long after the ceiling", lambda: daemon.status()["live"]["last_sweep"]["at"] > swept + 3000, 90)
    assert daemon.container("prog", "warm") == before
    assert daemon.events("container_stuck") == []
    daemon.at_rest = True
