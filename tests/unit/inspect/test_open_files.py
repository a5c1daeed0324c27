"""A process without a free descriptor is seen from outside, and the repair that is named gives it room."""

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.core.diagnoses import diagnose_host
from daemon.core.facts import DaemonState, HostFacts, UsedUp
from daemon.inspect.open_files import open_files_used_up


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # Its echo shows that the loader has closed the libraries that it opened: from now on the table of descriptors rests.
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()


def test_a_limit_that_is_reached_is_told_and_one_with_room_is_not(other: subprocess.Popen[bytes]) -> None:
    assert open_files_used_up(other.pid) is None
    _, hard = resource.prlimit(other.pid, resource.RLIMIT_NOFILE)
    taken = {int(entry.name) for entry in Path(f"/proc/{other.pid}/fd").iterdir()}
    lowest = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(other.pid, resource.RLIMIT_NOFILE, (lowest, hard))
    assert open_files_used_up(other.pid) == UsedUp(other.pid, lowest, hard)


def test_a_process_that_is_gone_is_no_finding() -> None:
    assert open_files_used_up(2**22 + 1) is None


def test_the_repair_raises_the_limit() -> None:
    def command(used_up: UsedUp) -> str:
        host = HostFacts(now=0, data_dir="/data", daemon=DaemonState.SILENT, holder_pid=7, used_up=used_up)
        return next(one.command for one in diagnose_host(host) if one.code == "HOST_TROUBLE")

    assert command(UsedUp(7, 20, 4096)) == "prlimit --pid 7 --nofile=4096:"
    assert command(UsedUp(7, 20, 20)) == "prlimit --pid 7 --nofile=131072:131072", "a restart has the same limit"
    assert command(UsedUp(7, 20, -1)) == "prlimit --pid 7 --nofile=131072:"
