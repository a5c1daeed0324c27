"""The demo's agent: any program will do. It reads a turn as JSON on stdin and writes its answer to stdout.

Runs in the agent's container (or as a plain process) with the standard library alone. A text that begins with "slow"
takes some seconds, long enough to be killed in the middle of it.
"""

import json
import sys
import time
from typing import Final, cast

SLOW_S: Final = 2.5
QUICK_S: Final = 0.1


def text_of(content: object) -> str:
    """The text of a message: `local` has it in content.text, `webhook` has what was posted in content.body."""
    for key in ("body", "text"):
        if isinstance(content, dict):
            fields = cast("dict[str, object]", content)
            content = fields.get(key, fields)
    return str(content)


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    turn = json.load(sys.stdin)
    done: list[str] = []
    for message in turn["messages"]:
        text = text_of(message["content"])
        seconds = SLOW_S if text.startswith("slow") else QUICK_S
        say(type="tool", name="think", timeout_s=60)
        time.sleep(seconds)
        say(type="tool_end")
        done.append(text)
    say(type="message", content={"text": "done: " + ", ".join(done)})


if __name__ == "__main__":
    main()
