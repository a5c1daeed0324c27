"""A stand-in for the runner in runtime tests. It imports nothing of clawbus. The environment variable STUB selects what it does.

STUB=exit:N ends with N · stay ends with 0 on SIGTERM · stubborn ignores SIGTERM · breed leaves a child behind ·
eat takes a GiB · write-in tries to write to in/. It prints `ready` to stderr once its signal handlers are set.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Do what STUB names. Return the exit code."""
    behaviour = os.environ.get("STUB", "stay")
    out = Path(os.environ.get("CLAWBUS_OUT", "/workspace/out"))
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, end)
    if behaviour == "breed":
        own = {name: value for name, value in os.environ.items() if not name.startswith("CLAWBUS_")}
        program = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(program, start_new_session=True, env=own)
        (out / "child").write_text(str(child.pid), encoding="ascii")
    if behaviour == "eat":
        sys.exit(len(bytearray(os.urandom(1)) * 1024**3) == 0)
    if behaviour == "write-in":
        return try_to_write(Path(os.environ.get("CLAWBUS_IN", "/workspace/in")))
    names = sorted(name for name in os.environ if name.startswith("CLAWBUS_") or name.endswith("SECRET"))
    (out / "environment").write_text("\n".join(names), encoding="utf-8")
    say("ready", os.environ["CLAWBUS_INCARNATION"])
    (out / "ready").touch()
    if behaviour.startswith("exit:"):
        return int(behaviour.removeprefix("exit:"))
    while True:
        signal.pause()


def say(*words: str) -> None:
    """Print one line to stderr."""
    sys.stderr.write(" ".join(words) + "\n")
    sys.stderr.flush()


def end(*_: object) -> None:
    """Exit, and ignore further SIGTERMs: an exiting interpreter has restored its handlers, so another would kill it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def try_to_write(folder: Path) -> int:
    """Try to write into in/. Return 0 if the kernel refused, else 1."""
    try:
        (folder / "inbound.db-journal").write_bytes(b"x")
    except OSError as error:
        say("refused:", str(error.strerror))
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
