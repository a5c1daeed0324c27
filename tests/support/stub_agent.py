"""A stand-in for the runner in runtime tests. It imports nothing of ours; what it does is in the agent's environment.

STUB=exit:N ends with N · stay ends with 0 on SIGTERM · stubborn ignores SIGTERM · breed leaves a child behind ·
write-in tries to write to in/. It says `ready` on stderr once its signal handlers are set, and what it did.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """One behaviour, one exit code."""
    behaviour = os.environ.get("STUB", "stay")
    out = Path(os.environ.get("CLAWBUS_OUT", "/workspace/out"))
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if behaviour == "breed":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (out / "child").write_text(str(child.pid), encoding="ascii")
    if behaviour == "write-in":
        return try_to_write(Path(os.environ.get("CLAWBUS_IN", "/workspace/in")))
    names = sorted(name for name in os.environ if name.startswith("CLAWBUS_") or name.endswith("SECRET"))
    (out / "environment").write_text("\n".join(names), encoding="utf-8")
    print("ready", os.environ["CLAWBUS_INCARNATION"], file=sys.stderr, flush=True)
    (out / "ready").touch()
    if behaviour.startswith("exit:"):
        return int(behaviour.removeprefix("exit:"))
    while True:
        signal.pause()


def try_to_write(folder: Path) -> int:
    """0 when the kernel refused."""
    try:
        (folder / "inbound.db-journal").write_bytes(b"x")
    except OSError as error:
        print("refused:", error.strerror, file=sys.stderr, flush=True)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
