"""How the demo's messages get in: over `local` with the real command, over `webhook` with a signed request."""

from __future__ import annotations

import json
import time

import httpx

from demo.receiver import sign
from demo.setting import HOOK, Setting
from demo.stage import DemoFailed, Stage

MAILBOX = "demo"


def send_local(stage: Stage, agent: str, session: str, text: str) -> str:
    """`clawbus send`; returns the id of the accepted message."""
    arguments = ("send", text, "--agent", agent, "--session", session, "--mailbox", MAILBOX)
    return str(stage.clawbus(*arguments)["message_id"])


def send_webhook(http: httpx.Client, setting: Setting, message_id: str, text: str) -> str:
    """A signed POST, as somebody else's service would send it; returns the id of the accepted message."""
    body = json.dumps({"text": text}).encode()
    stamp = str(int(time.time()))
    path = f"/hooks/{HOOK}"
    headers = {
        "Content-Type": "application/json",
        "X-Clawbus-Id": message_id,
        "X-Clawbus-Timestamp": stamp,
        "X-Clawbus-Signature": sign(setting.secret, f"{stamp}\n{path}\n{message_id}\n", body),
    }
    answer = http.post(f"http://127.0.0.1:{setting.port}{path}", content=body, headers=headers)
    if answer.status_code != 202:
        raise DemoFailed(f"the webhook refused {message_id}: {answer.status_code} {answer.text}")
    return str(answer.json()["id"])
