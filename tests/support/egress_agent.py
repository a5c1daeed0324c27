"""An agent's program that asks a model through the gate and answers with what it says. Standard library only.

The message's text is a path, or `env` for the variables that it sees, or `walk` for every readable environment in /proc.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path


def ask(path: str) -> str:
    request = urllib.request.Request(  # noqa: S310
        os.environ["MODEL_URL"] + path, b'{"hello": 1}', {"x-api-key": os.environ["MODEL_KEY"]}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def walk() -> str:
    found = [f"{name}={value}" for name, value in os.environ.items()]
    for name in Path("/proc").glob("[0-9]*/environ"):
        try:
            found.append(name.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


turn = json.load(sys.stdin)
text = turn["messages"][-1]["content"]["text"]
print(walk() if text == "walk" else ask(text))
