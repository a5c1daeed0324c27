"""The demo's agent for AGENT=scripted: it speaks the Agent Client Protocol over standard input and output, as Claude Code does.

Standard library alone. It uses a tool in each turn, asks for a permission when a request begins with "careful", keeps its
sessions in its HOME, and continues them in a later process.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

SLOW_S: Final = 2.5
QUICK_S: Final = 0.1
MEMORY: Final = Path(os.environ.get("HOME", ".")) / "demo-agent.json"


def send(**message: object) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def update(session: str, what: str, **fields: object) -> None:
    send(method="session/update", params={"sessionId": session, "update": {"sessionUpdate": what, **fields}})


def sessions() -> dict[str, list[str]]:
    return json.loads(MEMORY.read_text()) if MEMORY.exists() else {}


def remember(session: str, *prompts: str) -> int:
    """Keep prompts of a session, and return how many it has."""
    kept = sessions()
    kept.setdefault(session, []).extend(prompts)
    new = MEMORY.with_suffix(".new")
    new.write_text(json.dumps(kept))
    new.rename(MEMORY)
    return len(kept[session])


def is_allowed(session: str, title: str) -> bool:
    """Ask for a permission, and wait for the answer."""
    choices = (("yes", "Allow", "allow_once"), ("no", "Deny", "reject_once"))
    options = [{"optionId": option, "name": name, "kind": kind} for option, name, kind in choices]
    call = {"toolCallId": "t1", "title": title, "kind": "execute"}
    params = {"sessionId": session, "toolCall": call, "options": options}
    send(id="permission", method="session/request_permission", params=params)
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("id") == "permission":
            return bool(message["result"]["outcome"].get("optionId") == "yes")
    return False


def work(session: str, prompt: str) -> None:
    """Use a tool, as long as the prompt deserves, and answer."""
    count = remember(session, prompt)
    update(session, "tool_call", toolCallId="t1", title="think", kind="think", status="in_progress")
    time.sleep(SLOW_S if "slow" in prompt else QUICK_S)
    update(session, "tool_call_update", toolCallId="t1", status="completed")
    text = prompt.splitlines()[-1]
    if text.startswith("careful"):
        text += ", allowed" if is_allowed(session, "send the report out") else ", not allowed"
    again = ", once more after an interruption" if prompt.startswith("[This is try ") else ""
    words = f"done: {text}{again} (request {count} of this conversation)"
    update(session, "agent_message_chunk", content={"type": "text", "text": words})


def result_of(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a request, or None for one that this agent does not know."""
    if method == "initialize":
        return {"protocolVersion": 1, "agentCapabilities": {"sessionCapabilities": {"resume": {}}}}
    if method == "session/new":
        session = f"demo-{len(sessions()) + 1}-{os.getpid()}"
        remember(session)
        return {"sessionId": session}
    if method == "session/resume" and params["sessionId"] in sessions():
        return {}
    if method == "session/prompt":
        work(params["sessionId"], "\n".join(block.get("text", "") for block in params["prompt"]))
        return {"stopReason": "end_turn"}
    return None


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "method" not in message or "id" not in message:
            continue
        result = result_of(message["method"], message.get("params", {}))
        if result is None:
            send(id=message["id"], error={"code": -32601, "message": "method not found"})
        else:
            send(id=message["id"], result=result)


if __name__ == "__main__":
    main()
