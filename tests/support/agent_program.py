"""An agent program that does what the message tells it. One turn on standard input; it knows nothing of the bus.

say X - answers X · exit N - ends with code N · garbage - writes bytes that are no text · broken - a JSON line and then
none · pid - answers its parent's pid, which is the runner · hang FILE - makes FILE, waits until FILE.go is there, and
answers `done` · later MS X - answers X, to be delivered at the epoch millisecond · die N - kills the runner, until the
counter in the file of its own folder is N · context - answers all it was given.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    turn = json.load(sys.stdin)
    text = turn["messages"][-1]["content"]
    text = text["text"] if "text" in text else json.dumps(text.get("body"))
    verb, _, rest = text.partition(" ")
    if verb == "exit":
        print("it is over", file=sys.stderr)
        return int(rest)
    if verb == "garbage":
        sys.stdout.buffer.write(b"\xff\xfe\x00\xff")
    elif verb == "broken":
        print('{"type": "message", "text": "first"}\nno JSON')
    elif verb == "hang":
        hang(Path(rest))
    elif verb == "later":
        due, _, words = rest.partition(" ")
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(due) / 1000)) + f".{int(due) % 1000:03d}Z"
        print(json.dumps({"type": "message", "text": "at once"}))
        print(json.dumps({"type": "message", "text": words, "deliver_after": when}))
    elif verb == "die":
        die(int(rest))
    elif verb == "context":
        print(json.dumps({"type": "message", "content": {"text": "seen", "messages": turn["messages"]}}))
    elif verb == "pid":
        print(os.getppid())
    else:
        print(rest if verb == "say" else text)
    return 0


def hang(mark: Path) -> None:
    mark.write_text(turn_id(), encoding="utf-8")
    go = mark.with_name(mark.name + ".go")
    deadline = time.monotonic() + 60
    while not go.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    print("done")


def die(times: int) -> None:
    """Kill the runner's whole process group, `times` times; the next turn lives."""
    counter = Path("deaths")
    count = int(counter.read_text()) if counter.exists() else 0
    if count < times:
        counter.write_text(str(count + 1))
        os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
        time.sleep(60)
    print(f"died {count} times")


def turn_id() -> str:
    return f"{os.getpid()} {os.getppid()}"


if __name__ == "__main__":
    sys.exit(main())
