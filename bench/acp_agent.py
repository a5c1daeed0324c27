"""An ACP agent that answers at once and is silent otherwise: `python acp_agent.py`. Standard library alone."""

import json
import sys


def main() -> None:
    """Serve until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        method, number = asked.get("method"), asked.get("id")
        if method == "session/prompt":
            said = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "ok"}}
            send(method="session/update", params={"sessionId": "s", "update": said})
            send(id=number, result={"stopReason": "end_turn"})
        elif method == "initialize":
            send(id=number, result={"protocolVersion": 1, "agentCapabilities": {}})
        elif method == "session/new":
            send(id=number, result={"sessionId": "s"})


def send(**message: object) -> None:
    """Write one message."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
