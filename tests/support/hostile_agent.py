"""An agent program that attacks its host. The turn's text is a verb and its arguments; it knows the contract and keeps none of it.

It needs Python alone. What must go on beyond its turn runs in a child of a session of its own, which the runner's kill of
the program's group does not reach.

say X · swap KIND FILE - swaps a file with a KIND (symlink:TARGET, fifo, folder, hardlink, noise) in a tight loop · place KIND
FILE - puts one there, and puts it back when it is gone · sql STATEMENTS - run on outbound.db · script PYTHON · look - lists
what it can see.
"""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

OUT = Path("/workspace/out")
IN = Path("/workspace/in")
SECONDS = 120


def detached(work: Callable[[], object]) -> None:
    """Run in a child that outlives the turn; it tells nobody anything."""
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        os.read(ours, 1)  # until it has left the group that is killed at the turn's end
        os.close(ours)
        return
    os.setsid()
    os.write(theirs, b".")
    os.close(ours)
    os.close(theirs)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    with contextlib.suppress(BaseException):
        work()
    os._exit(0)


def make(kind: str, path: Path) -> None:
    what, _, target = kind.partition(":")
    if what == "symlink":
        path.symlink_to(target)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "hardlink":
        twin = path.with_name("twin")
        if not twin.exists():
            shutil.copy(OUT / "outbound.db", twin)
        os.link(twin, path)
    elif what == "noise":
        path.write_bytes(os.urandom(16384))
    elif what == "sparse":
        with path.open("wb") as file:
            file.truncate(int(target))
    elif what == "copy":
        shutil.copy(target, path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def place(kind: str, name: str) -> None:
    """Put it there and put it back whenever it is gone: the runner's SQLite removes a -wal or an empty journal."""
    path = OUT / name
    fresh = path.with_name("fresh")
    make(kind, fresh)
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name("kept"))
    fresh.rename(path)
    detached(lambda: put_back(kind, path, fresh))


def put_back(kind: str, path: Path, fresh: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if not os.path.lexists(path):
            make(kind, fresh)
            fresh.rename(path)
        time.sleep(0.005)


def swap(kind: str, name: str) -> None:
    """The real file and the other thing take turns under one name, as fast as renames go."""
    path, real, other = OUT / name, OUT / "real", OUT / "other"
    deadline = time.monotonic() + SECONDS
    exists = path.exists()
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if not os.path.lexists(other):
                make(kind, other)
            if exists:
                path.rename(real)
            other.rename(path)
            path.rename(other)
            if exists:
                real.rename(path)


def sql(text: str) -> str:
    connection = sqlite3.connect(OUT / "outbound.db", isolation_level=None, timeout=30)
    try:
        connection.executescript(text)
    finally:
        connection.close()
    return "done"


def look() -> dict[str, object]:
    """Everything a curious program tries, and what came of it."""
    status = Path("/proc/self/status").read_text()
    processes = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    found: dict[str, object] = {
        "uid": os.getuid(),
        "capabilities": [line.split()[1] for line in status.splitlines() if line.startswith("Cap")],
        "no_new_privileges": "NoNewPrivs:\t1" in status,
        "processes": len(processes),
        "environment": dict(os.environ),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "docker_socket": os.path.lexists("/var/run/docker.sock"),
    }
    found["commands"] = [_read(f"/proc/{name}/cmdline") for name in processes]
    found["environments"] = [_read(f"/proc/{name}/environ") for name in processes]
    found["refused"] = {name: _tried(attempt) for name, attempt in _attempts().items()}
    return found


def _attempts() -> dict[str, Callable[[], object]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def mount() -> None:
        if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) != 0:
            raise OSError(ctypes.get_errno(), "mount")

    def connect() -> None:
        with socket.socket() as sock:
            sock.settimeout(2)
            sock.connect(("192.0.2.1", 80))

    return {
        "write to the root": lambda: Path("/evil").write_text("x"),
        "write to in/": lambda: (IN / "evil").write_text("x"),
        "journal beside inbound.db": lambda: (IN / "inbound.db-journal").write_bytes(b"x"),
        "write inbound.db": lambda: sqlite3.connect(IN / "inbound.db").execute("DELETE FROM messages_in"),
        "hard link of inbound.db": lambda: os.link(IN / "inbound.db", OUT / "stolen"),
        "device": lambda: os.mknod(OUT / "disk", 0o60600, os.makedev(8, 0)),
        "mount": mount,
        "become root": lambda: os.setuid(0),
        "chown": lambda: os.chown(OUT, 0, 0),
        "network": connect,
        "host name": lambda: socket.sethostname("evil"),
        "read the host's memory": lambda: Path("/dev/mem").read_bytes(),
        "kill others": lambda: os.kill(2**22 - 1, 9),
    }


def _tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what came of it
        return f"{type(error).__name__}: {error}"
    return "SUCCEEDED"


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError as error:
        return f"{type(error).__name__}"


def main() -> int:
    turn = json.load(sys.stdin)
    verb, _, rest = turn["messages"][-1]["content"]["text"].partition(" ")
    if verb == "swap":
        kind, _, name = rest.partition(" ")
        detached(lambda: swap(kind, name))
    elif verb == "place":
        kind, _, name = rest.partition(" ")
        detached(lambda: (time.sleep(0.3), place(kind, name)))
    elif verb == "sql":
        rest = sql(rest)
    elif verb == "script":
        script, rest = rest, "begun"
        detached(lambda: exec(script, globals()))  # noqa: S102 - it is the attacker
    elif verb == "now":
        exec(rest, globals())  # noqa: S102
        rest = "done"
    elif verb == "look":
        print(json.dumps({"type": "message", "content": look()}))
        return 0
    print(json.dumps({"type": "message", "text": rest}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
