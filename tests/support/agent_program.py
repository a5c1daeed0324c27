"""An agent program that does what the message tells it. One turn on standard input; it knows nothing of the bus.

say X - answers X · file NAME X - sends a file with X · exit N - ends with code N · garbage - writes bytes that are no text · broken - a JSON line and then
none · pid - answers its parent's pid, which is the runner · hang FILE - makes FILE, waits until FILE.go is there, and
answers `done` · places - answers the names of its destinations · to NAME X - sends X to NAME and answers `sent` · thread NAME T X - sends X to NAME in the
thread T · wait FILE NAME X - the same
after `hang FILE` · plan S X - has X sent to itself twice, every S seconds, and answers `planned` · later MS X - answers X, to be delivered at the epoch millisecond · die N - kills the runner, until the
counter in the file of its own folder is N · context - answers all it was given · look - answers
what it can see and do here · ask {...} - asks the question of these fields and answers what became of it · tell A B FILE - says A and edits it to B at once, reports `half way`, makes FILE, waits for FILE.go and answers
done · eat N - takes N MiB of memory.
"""

import importlib.util
import json
import os
import pwd
import signal
import sys
import time
from pathlib import Path


def main() -> int:  # noqa: PLR0912 -- one branch a verb
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
    elif verb == "file":
        name, _, words = rest.partition(" ")
        # By a process without this one's environment: a test may make this one's own calls fail (tests/support/errnos).
        path = str(Path(os.environ["HOME"]) / name)
        child = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", 'printf %s "$1" > "$0"', path, words], {})
        os.waitpid(child, 0)
        print(json.dumps({"type": "message", "text": "see it", "files": [name]}))
    elif verb == "hang":
        hang(Path(rest))
        print("done")
    elif verb == "places":
        print(" ".join(one["name"] for one in turn["destinations"]))
    elif verb == "thread":
        name, thread, words = rest.split(" ", 2)
        print(json.dumps({"type": "message", "to": name, "thread_id": thread, "text": words}))
    elif verb in ("to", "wait"):
        if verb == "wait":
            mark, _, rest = rest.partition(" ")
            hang(Path(mark))
        name, _, words = rest.partition(" ")
        print(json.dumps({"type": "message", "to": name, "text": words}))
        print(json.dumps({"type": "message", "text": "sent"}))
    elif verb == "later":
        due, _, words = rest.partition(" ")
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(due) / 1000)) + f".{int(due) % 1000:03d}Z"
        print(json.dumps({"type": "message", "text": "at once"}))
        print(json.dumps({"type": "message", "text": words, "deliver_after": when}))
    elif verb == "plan":
        every, _, words = rest.partition(" ")
        print(json.dumps({"type": "schedule", "key": "own", "text": words, "every_s": float(every), "count": 2}))
        print(json.dumps({"type": "message", "text": "planned"}))
    elif verb == "die":
        die(int(rest))
    elif verb == "context":
        print(json.dumps({"type": "message", "content": {"text": "seen", "messages": turn["messages"]}}))
    elif verb == "look":
        print(json.dumps({"type": "message", "content": {"text": "seen", **look()}}))
    elif verb == "eat":
        print(len(b"x" * (int(rest) * 1024**2)))
    elif verb == "tell":
        tell(rest)
    elif verb == "ask":
        ask(turn["answers"], json.loads(rest))
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


def tell(rest: str) -> None:
    first, second, mark = rest.split(" ")
    for text in (first, second):
        print(json.dumps({"type": "message", "text": text, "now": True, "key": "status"}), flush=True)
    print(json.dumps({"type": "progress", "note": "half way"}), flush=True)
    path = Path(mark)
    path.touch()
    while not path.with_name(path.name + ".go").exists():
        time.sleep(0.01)
    print(json.dumps({"type": "message", "text": "done"}))


def ask(answers: str, question: dict[str, object]) -> None:
    """Ask, wait for the answer, and say it."""
    with Path(answers).open(encoding="utf-8") as replies:
        print(json.dumps({"type": "question", **question}), flush=True)
        answer = json.loads(replies.readline())
    said = f"{answer['status']} {answer['choice']} {answer['text']}"
    print(json.dumps({"type": "message", "text": said, "by": answer["by"]}))


def die(times: int) -> None:
    """Kill the runner's whole process group, `times` times; the next turn lives."""
    counter = Path("deaths")
    count = int(counter.read_text()) if counter.exists() else 0
    if count < times:
        counter.write_text(str(count + 1))
        os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
        time.sleep(60)
    print(f"died {count} times")


def look() -> dict[str, object]:
    """Who it is, what it imports from, and what the system lets it do."""
    return {
        "uid": os.getuid(),
        "user": user_name(),
        "home": os.environ.get("HOME"),
        "path": sys.path,
        "executable": sys.executable,
        "environ": dict(os.environ),
        "importable": [
            name for name in ("anyio", "structlog", "watchfiles", "container_runner", "schema") if found(name)
        ],
        "writable": [
            name
            for name in ("/workspace/in", "/workspace/out", "/workspace/agent", "/workspace/home", "/opt", "/tmp", "/")
            if writes(name)
        ],
    }


def user_name() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None


def found(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def writes(folder: str) -> bool:
    try:
        (Path(folder) / "inbound.db-journal").write_bytes(b"x")
        (Path(folder) / "inbound.db-journal").unlink()
    except OSError:
        return False
    return True


def turn_id() -> str:
    return f"{os.getpid()} {os.getppid()}"


if __name__ == "__main__":
    sys.exit(main())
