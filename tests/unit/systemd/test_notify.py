"""sd_notify, against a real datagram socket; the watchdog, with a moved clock."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from daemon.systemd.notify import Notifier
from daemon.systemd.watchdog import DEFAULT_CHECK_S, Pulse, Stall, Watchdog


class MovedClock:
    def __init__(self) -> None:
        self.at = 1000.0

    def now_ms(self) -> int:
        return int(self.at * 1000)

    def monotonic(self) -> float:
        return self.at

    def slept_s(self) -> float:
        return 0.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def heard(manager: socket.socket) -> list[str]:
    said: list[str] = []
    while True:
        try:
            said.append(manager.recv(4096).decode())
        except BlockingIOError:
            return said


def notifier(manager: socket.socket, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname(), **more})


def test_each_message_is_one_datagram_as_the_protocol_has_it(manager: socket.socket) -> None:
    tell = notifier(manager)
    assert tell.enabled
    tell.ready("2 sessions\nlive")
    tell.status("  busy ")
    tell.watchdog()
    tell.stopping("bye")
    assert heard(manager) == ["READY=1\nSTATUS=2 sessions live", "STATUS=busy", "WATCHDOG=1", "STOPPING=1\nSTATUS=bye"]


def test_reloading_carries_the_monotonic_time_in_microseconds(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier(manager).reloading()
    (text,) = heard(manager)
    first, second = text.split("\n")
    assert first == "RELOADING=1"
    name, _, number = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(number) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_an_abstract_socket_is_one_too() -> None:
    name = f"clawbus-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.setblocking(False)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard(sock) == ["READY=1"]


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234"])
def test_without_a_manager_it_does_nothing(name: str) -> None:
    tell = Notifier({"NOTIFY_SOCKET": name})
    assert not tell.enabled
    with capture_logs() as events:
        tell.ready()
        tell.watchdog()
    assert events == []


def test_a_manager_that_went_away_is_told_of_once(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    tell = Notifier({"NOTIFY_SOCKET": str(path)})
    with capture_logs() as events:
        tell.watchdog()
        tell.watchdog()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(path))
            tell.watchdog()
        path.unlink()
        tell.watchdog()
    assert [event["event"] for event in events] == ["notify_failed", "notify_failed"]


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_interval(environment: dict[str, str], interval: float | None) -> None:
    assert Notifier(environment).watchdog_interval == interval


# --- the pulse -------------------------------------------------------------------------------------------------------


def test_a_loop_is_late_only_past_its_own_age() -> None:
    clock = MovedClock()
    pulse = Pulse(clock)
    pulse.register("sweep", 120)
    pulse.register("delivery", 30)
    clock.at += 30
    assert pulse.stale() == []
    clock.at += 1
    assert pulse.stale() == [Stall("delivery", 31, 30)]
    pulse.beat("delivery")
    assert pulse.stale() == []
    assert pulse.ages() == {"sweep": 31, "delivery": 0}
    assert pulse.stale(clock.at + 200) == [Stall("delivery", 200, 30), Stall("sweep", 231, 120)]


def test_a_loop_that_ended_is_not_missed() -> None:
    clock = MovedClock()
    pulse = Pulse(clock)
    pulse.register("adoption", 1)
    pulse.forget("adoption")
    clock.at += 100
    assert pulse.stale() == []


def test_a_beat_of_nobody_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Pulse(MovedClock()).beat("sweeep")


# --- the watchdog ----------------------------------------------------------------------------------------------------


def test_systemd_hears_nothing_while_a_loop_is_stalled(manager: socket.socket) -> None:
    clock = MovedClock()
    pulse = Pulse(clock)
    pulse.register("sweep", 60)
    watchdog = Watchdog(pulse, notifier(manager, WATCHDOG_USEC="30000000"))
    with capture_logs() as events:
        assert watchdog.check()
        clock.at += 61
        assert not watchdog.check()
        clock.at += 10
        assert not watchdog.check()
        pulse.beat("sweep")
        assert watchdog.check()
        clock.at += 61
        assert not watchdog.check()
    assert heard(manager) == ["WATCHDOG=1", "WATCHDOG=1"]
    assert [(event["event"], event["loop"]) for event in events] == [
        ("loop_stalled", "sweep"),
        ("loop_recovered", "sweep"),
        ("loop_stalled", "sweep"),
    ]
    assert events[0]["silent_s"] == 61
    assert events[0]["restart_expected"] is True


def test_the_status_line_goes_along(manager: socket.socket) -> None:
    watchdog = Watchdog(Pulse(MovedClock()), notifier(manager), lambda: "3 sessions active")
    watchdog.check()
    assert heard(manager) == ["STATUS=3 sessions active", "WATCHDOG=1"]


@pytest.mark.parametrize(("usec", "interval"), [("", DEFAULT_CHECK_S), ("9000000", 3.0), ("300000000", 10.0)])
def test_it_checks_well_within_the_allowed_time(manager: socket.socket, usec: str, interval: float) -> None:
    tell = notifier(manager, **({"WATCHDOG_USEC": usec} if usec else {}))
    assert Watchdog(Pulse(MovedClock()), tell).interval_s == interval


@pytest.mark.anyio
async def test_it_runs_until_cancelled(manager: socket.socket) -> None:
    watchdog = Watchdog(Pulse(MovedClock()), notifier(manager, WATCHDOG_USEC="3000"))
    said: list[str] = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(watchdog.run)
            while len(said) < 3:
                await anyio.wait_readable(manager)
                said += heard(manager)
            group.cancel_scope.cancel()
    assert set(said) == {"WATCHDOG=1"}
