"""An agent of one file and no library: it asks a model, and keeps the conversation in the session's HOME."""

import json
import os
import sys
import urllib.request
from pathlib import Path

MEMORY = Path.home() / "conversation.json"
MODEL = os.environ.get("MODEL", "claude-sonnet-4-5")


def say(**line):
    print(json.dumps(line), flush=True)


def ask(messages):
    """Return the model's answer. The gate adds the key, so there is none here."""
    body = {"model": MODEL, "max_tokens": 1024, "messages": messages}
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "anthropic-version": "2023-06-01"},
    )
    with urllib.request.urlopen(request, timeout=240) as response:
        answer = json.load(response)
    return "".join(part.get("text", "") for part in answer["content"])


turn = json.load(sys.stdin)
said = "\n".join(str(one["content"].get("text", "")) for one in turn["messages"] if one["trigger"])
messages = json.loads(MEMORY.read_text()) if MEMORY.exists() else []
messages.append({"role": "user", "content": said})

say(type="progress", note="asking the model")
messages.append({"role": "assistant", "content": ask(messages)})

# One replacement, so that a death in between keeps the old conversation.
new = MEMORY.with_suffix(".new")
new.write_text(json.dumps(messages[-40:]))
new.replace(MEMORY)
say(type="message", text=messages[-1]["content"])
