"""Which names the daemons of one host own, with real processes: another role's are refused until its process is dead."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from daemon.core.deploy_errors import DuplicateOwnershipError
from daemon.workers.host_owners import HostOwners, Id

ROOT = Path(__file__).parents[3]
ECHO, FAR, HOOK = ("agent", "echo"), ("agent", "far"), ("channel", "echo")
OTHER = """
import sys
from daemon.workers.host_owners import HostOwners
owners = HostOwners(sys.argv[1], sys.argv[2])
try:
    owners.hold([tuple(one.split("/")) for one in sys.argv[3:]])
    print("held", flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
sys.stdin.read()
"""
Begin = Callable[[str, str, Sequence[Id]], "subprocess.Popen[str]"]


@pytest.fixture(name="begin")
def _begin() -> Iterator[Begin]:
    begun: list[subprocess.Popen[str]] = []

    def begin(role: str, install: str, ids: Sequence[Id]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, role, install, *("/".join(one) for one in ids)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate(timeout=60)


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture(name="ours")
def _ours() -> Iterator[HostOwners]:
    owners = HostOwners("host", f"ours-{os.getpid()}")
    yield owners
    owners.close()


def test_a_name_that_another_role_owns_is_refused_until_its_process_is_dead(begin: Begin, ours: HostOwners) -> None:
    other = begin("cluster", f"theirs-{os.getpid()}", [ECHO])
    assert said(other) == "held"
    with pytest.raises(DuplicateOwnershipError, match=f"process {other.pid}"):
        ours.hold([FAR, ECHO])
    with pytest.raises(DuplicateOwnershipError, match="role cluster"):
        ours.check(ECHO)
    ours.hold([FAR, HOOK])  # HOOK is a channel: an agent of the same name is another thing
    ours.check(FAR)
    other.kill()
    other.wait(timeout=60)
    ours.hold([FAR, ECHO])
    ours.check(ECHO)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_an_owner_that_cannot_be_examined_now_is_not_taken_for_gone(
    begin: Begin, ours: HostOwners, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert said(begin("cluster", f"theirs-{os.getpid()}", [ECHO])) == "held"

    def short(_: Path) -> Iterator[Path]:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", short)
        for ask in (lambda: ours.hold([ECHO]), lambda: ours.check(ECHO), ours.duplicates):
            with pytest.raises(OSError, match=os.strerror(number)):
                ask()
    with pytest.raises(DuplicateOwnershipError):
        ours.check(ECHO)


def test_what_is_held_keeps_others_out_and_what_is_given_up_does_not(begin: Begin, ours: HostOwners) -> None:
    ours.hold([ECHO, FAR])
    theirs = f"theirs-{os.getpid()}"
    assert said(begin("cluster", theirs, [FAR])) == "DuplicateOwnershipError"
    ours.hold([ECHO])
    assert said(begin("cluster", theirs, [FAR])) == "held"
    with pytest.raises(DuplicateOwnershipError):
        ours.hold([ECHO, FAR])
    assert said(begin("cluster", theirs, [ECHO])) == "DuplicateOwnershipError", "a refusal gives up nothing"
    assert ours.duplicates() == []


def test_a_second_folder_of_the_same_role_goes_on_and_is_shown(begin: Begin, ours: HostOwners) -> None:
    """As in a restore drill beside the original: each folder has its own messages."""
    ours.hold([ECHO, FAR])
    drill = begin("host", f"drill-{os.getpid()}", [ECHO])
    assert said(drill) == "held"
    assert ours.duplicates() == ["agent echo"]
    assert said(begin("host", f"ours-{os.getpid()}", [FAR])) == "held", "the same folder's next daemon"
    assert ours.duplicates() == ["agent echo"]
    drill.kill()
    drill.wait(timeout=60)
    assert ours.duplicates() == []


def test_two_that_start_at_once_never_both_own_a_name(begin: Begin) -> None:
    for number in range(5):
        pair = [begin(role, f"{role}-{os.getpid()}-{number}", [ECHO]) for role in ("host", "cluster")]
        heard = [said(one) for one in pair]
        assert heard.count("held") <= 1
        for one in pair:
            one.kill()
            one.wait(timeout=60)


def test_a_name_whose_process_does_not_hold_it_blocks_nobody(ours: HostOwners, begin: Begin) -> None:
    """Any process in the network namespace can bind a socket of any name, even one that names another process."""
    other = begin("cluster", f"theirs-{os.getpid()}", [ECHO])
    assert said(other) == "held"
    held = next(
        line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if f"/{other.pid}/" in line
    )
    other.kill()
    other.wait(timeout=60)
    for name in (held, held.replace(f"/{other.pid}/", "/1/"), f"@clawbus-owner/{os.getuid()}/x"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as forged:
            forged.bind("\0" + name.removeprefix("@"))
            ours.hold([ECHO])
            ours.hold([])
