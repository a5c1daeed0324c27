"""An ACP agent that does what the prompt and its options tell it, misbehaviour included. Standard library alone.

Options: version=N · garbage · silent · login · modes=a,b · mode_option=a,b · resume=ok|missing|replay|die|hang|lost · load · noise ·
stay (ignores the end of its input and SIGTERM) · twins (two options with one id) · chatty (sends an update after each response). A prompt: say X · memory
(what it was told in this session) · tool NAME FILE (a tool that runs until FILE is there) · ask KIND (a permission) ·
askcall KIND (the same, its kind told by an earlier update alone) · hang FILE (makes FILE, works until it is cancelled) · deaf FILE (the same, and ignores the cancellation) ·
endless (thinks until it is cancelled) · orphan FILE (leaves a child that holds its output, and ends) · exit N · kill · mcp NAME JSON (calls a tool of the server that it was given) · fail N · abort · flood N · long N · image · files JSON (these content blocks) · empty · stop REASON · parts · fs · mode X · leave FILE · big N.
A second prompt while one runs aborts the first, as two real agents do.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

OPTIONS: dict[str, str] = {one.partition("=")[0]: one.partition("=")[2] for one in sys.argv[1:]}
MEMORY = Path("acp-memory.json")


class Agent:
    """One conversation over standard input and output."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session = ""
        self.cancelled = threading.Event()
        self.working: threading.Thread | None = None
        self.answers: dict[int, Any] = {}
        self.answered = threading.Condition()
        self.asked = 1000

    def send(self, **message: Any) -> None:
        with self.lock:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            sys.stdout.flush()

    def update(self, **update: Any) -> None:
        self.send(method="session/update", params={"sessionId": self.session, "update": update})

    def say(self, text: str, message_id: str | None = None) -> None:
        more = {} if message_id is None else {"messageId": message_id}
        self.update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": text}, **more)

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        with self.answered:
            self.asked += 1
            number = self.asked
            self.send(id=number, method=method, params={"sessionId": self.session, **params})
            while number not in self.answers:
                self.answered.wait(30)
            return self.answers.pop(number)

    def serve(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "method" not in message:
                with self.answered:
                    self.answers[message["id"]] = message
                    self.answered.notify_all()
            elif message["method"] == "session/cancel":
                self.cancelled.set()
            else:
                self.take(message["id"], message["method"], message["params"])
        if "stay" in OPTIONS:
            time.sleep(300)
        if self.working is not None and self.cancelled.is_set():
            self.working.join(2)

    def take(self, number: int, method: str, params: dict[str, Any]) -> None:
        if method == "session/prompt":
            if self.working is not None and self.working.is_alive():
                self.cancelled.set()
                self.working.join()
            self.cancelled.clear()
            self.working = threading.Thread(target=self.work, args=(number, params["prompt"][0]["text"]), daemon=True)
            self.working.start()
            return
        try:
            self.send(id=number, result=getattr(self, method.replace("/", "_"), self.not_there)(params))
        except RefusedError as error:
            self.send(id=number, error={"code": error.code, "message": str(error)})
        if "chatty" in OPTIONS:
            self.say("CHATTER")

    def not_there(self, _: dict[str, Any]) -> dict[str, Any]:
        raise RefusedError(-32601, "method not found")

    def initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        assert params["clientCapabilities"]["fs"] == {"readTextFile": False, "writeTextFile": False}
        if "silent" in OPTIONS:
            time.sleep(300)
        able: dict[str, Any] = {"loadSession": "load" in OPTIONS, "promptCapabilities": {}}
        if "resume" in OPTIONS:
            able["sessionCapabilities"] = {"resume": {}}
        return {"protocolVersion": int(OPTIONS.get("version", 1)), "agentCapabilities": able}

    def session_new(self, params: dict[str, Any]) -> dict[str, Any]:
        if "login" in OPTIONS:
            raise RefusedError(-32000, "authentication required")
        assert Path(params["cwd"]).is_absolute()
        self.servers = params["mcpServers"]
        if self.servers:
            self.call_tool(None, "")
        self.session = f"sess-{os.getpid()}-{len(sessions())}"
        remember(self.session)
        return {"sessionId": self.session, **self.modes()}

    def session_resume(self, params: dict[str, Any]) -> dict[str, Any]:
        way = OPTIONS["resume"]
        if way == "missing":
            raise RefusedError(-32601, "method not found")
        if way == "die":
            os._exit(3)
        if way == "hang":
            time.sleep(300)
        if way == "lost":  # as Hermes does: it says yes, and refuses each prompt
            self.session = "lost"
            return self.modes()
        self.known(params["sessionId"])
        if way == "replay":
            self.say("REPLAYED")
            threading.Timer(0.05, self.say, ["REPLAYED LATE"]).start()
        return self.modes()

    def session_load(self, params: dict[str, Any]) -> dict[str, Any]:
        self.known(params["sessionId"])
        self.say("REPLAYED")
        threading.Timer(0.05, self.say, ["REPLAYED LATE"]).start()
        return self.modes()

    def known(self, session: str) -> None:
        self.session = session
        if session not in sessions():
            raise RefusedError(-32002, "session not found")

    def modes(self) -> dict[str, Any]:
        if "mode_option" in OPTIONS:
            names = OPTIONS["mode_option"].split(",")
            options = [{"value": name, "name": name} for name in names]
            return {"configOptions": [{"id": "m", "category": "mode", "currentValue": names[0], "options": options}]}
        if "modes" not in OPTIONS:
            return {}
        names = OPTIONS["modes"].split(",")
        return {"modes": {"currentModeId": names[0], "availableModes": [{"id": name, "name": name} for name in names]}}

    def session_set_mode(self, params: dict[str, Any]) -> dict[str, Any]:
        remember(self.session, f"<mode {params['modeId']}>")
        return {}

    def session_set_config_option(self, params: dict[str, Any]) -> dict[str, Any]:
        remember(self.session, f"<{params['configId']} {params['value']}>")
        return {"configOptions": []}

    def work(self, number: int, prompt: str) -> None:
        if self.session == "lost":
            self.send(id=number, result={"stopReason": "refusal"})
            return
        remember(self.session, prompt)
        if "noise" in OPTIONS:
            with self.lock:
                print("Warning: this is not JSON\n[1, 2]\n\x00\n", flush=True)
        verb, _, rest = prompt.rpartition("\n")[2].partition(" ")
        try:
            reason = getattr(self, f"do_{verb}", self.do_say)(rest) or "end_turn"
        except RefusedError as error:
            self.send(id=number, error={"code": error.code, "message": str(error), "data": {"why": "scripted"}})
            return
        usage = {"totalTokens": 35, "inputTokens": 20, "outputTokens": 10, "cachedReadTokens": 5}
        cost = {"amount": 0.25 * len(sessions()[self.session]), "currency": "USD"}
        self.update(sessionUpdate="usage_update", used=30, size=1000, cost=cost)
        self.send(id=number, result={"stopReason": "cancelled" if self.cancelled.is_set() else reason, "usage": usage})

    def do_say(self, text: str) -> None:
        self.say(text)

    def do_mcp(self, rest: str) -> None:
        name, _, arguments = rest.partition(" ")
        self.say(self.call_tool(name, arguments))

    def call_tool(self, name: str | None, arguments: str) -> str:
        """Start the MCP server, list its tools, and call one. Return what it says, or the tools' names."""
        (server,) = self.servers
        requests: list[dict[str, Any]] = [
            {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18"}},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/list"},
        ]
        if name is not None:
            requests.append(
                {"id": 3, "method": "tools/call", "params": {"name": name, "arguments": json.loads(arguments)}}
            )
        answer: dict[str, Any] = {}
        with subprocess.Popen(
            [server["command"], *server["args"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for request in requests:
                process.stdin.write(json.dumps({"jsonrpc": "2.0", **request}) + "\n")
                process.stdin.flush()
                if "id" in request:
                    answer = json.loads(process.stdout.readline())
            process.stdin.close()
        if name is None:
            return json.dumps([tool["name"] for tool in answer["result"]["tools"]])
        return answer["result"]["content"][0]["text"]

    def do_memory(self, _: str) -> None:
        self.say(json.dumps(sessions()[self.session][:-1]))

    def do_pid(self, _: str) -> None:
        self.say(str(os.getpid()))

    def do_tool(self, rest: str) -> None:
        name, _, file = rest.partition(" ")
        self.say("before")
        self.update(sessionUpdate="tool_call", toolCallId="t1", title=name, kind="execute", status="pending")
        self.update(sessionUpdate="tool_call_update", toolCallId="t1", status="in_progress")
        Path(file + ".began").touch()
        wait_for(Path(file))
        self.update(sessionUpdate="tool_call_update", toolCallId="t1", status="completed")
        self.say("after")

    def do_ask(self, kind: str) -> None:
        self.say(
            self.permission(
                {"toolCallId": "t1", "title": "rm -r all", "kind": kind, "rawInput": {"command": "rm -r all"}}
            )
        )

    def do_askcall(self, kind: str) -> None:
        self.update(sessionUpdate="tool_call", toolCallId="t1", title="a call", kind=kind, status="pending")
        self.say(self.permission({"toolCallId": "t1"}))

    def permission(self, call: dict[str, Any]) -> str:
        kinds = ("allow_always", "allow_once", "reject_once")
        options = [{"optionId": f"o-{kind}", "name": kind, "kind": kind} for kind in kinds]
        if "twins" in OPTIONS:
            options = [{"optionId": "o-twin", "name": "twin", "kind": "reject_once"}] * 2
        reply = self.request("session/request_permission", {"toolCall": call, "options": options})
        return reply["result"]["outcome"].get("optionId", reply["result"]["outcome"]["outcome"])

    def do_fs(self, _: str) -> None:
        self.say(str(self.request("fs/read_text_file", {"path": "/etc/passwd"})["error"]["code"]))

    def do_hang(self, file: str) -> None:
        Path(file).touch()
        self.cancelled.wait(300)
        remember(self.session, "<cancelled>")

    def do_deaf(self, file: str) -> None:
        Path(file).touch()
        time.sleep(300)

    def do_endless(self, _: str) -> None:
        while not self.cancelled.is_set():
            self.update(sessionUpdate="agent_thought_chunk", content={"type": "text", "text": "on and on"})

    def do_orphan(self, file: str) -> None:
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)  # with our standard output and error
        Path(file).write_text(str(child.pid))
        os._exit(5)

    def do_exit(self, code: str) -> None:
        print("my last words", file=sys.stderr, flush=True)
        os._exit(int(code))

    def do_kill(self, _: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do_fail(self, code: str) -> None:
        raise RefusedError(int(code), "the model is away")

    def do_abort(self, _: str) -> None:
        self.cancelled.set()

    def do_flood(self, count: str) -> None:
        for number in range(int(count)):
            self.update(sessionUpdate="agent_thought_chunk", content={"type": "text", "text": f"thought {number}"})
        self.say("done")

    def do_long(self, size: str) -> None:
        self.say("x" * int(size))

    def do_big(self, size: str) -> None:
        for _ in range(int(size) // 1000):
            self.say("x" * 1000)

    def do_image(self, _: str) -> None:
        self.update(sessionUpdate="agent_message_chunk", content={"type": "image", "data": "?", "mimeType": "i/p"})
        self.say(" and words")

    def do_files(self, text: str) -> None:
        for content in json.loads(text):
            self.update(sessionUpdate="agent_message_chunk", content=content)

    def do_empty(self, _: str) -> None:
        pass

    def do_stop(self, reason: str) -> str:
        self.say("so far")
        return reason

    def do_parts(self, _: str) -> None:
        self.say("first, ", "m1")
        self.update(sessionUpdate="plan", entries=[])
        self.update(sessionUpdate="of a later version", content=3)
        self.say("the same", "m1")
        self.say("second", "m2")

    def do_mode(self, mode: str) -> None:
        self.update(sessionUpdate="current_mode_update", currentModeId=mode)
        self.say("changed")

    def do_leave(self, file: str) -> None:
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)
        Path(file).write_text(str(child.pid))
        self.say("left")


class RefusedError(Exception):
    """An error response."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def sessions() -> dict[str, list[str]]:
    return json.loads(MEMORY.read_text()) if MEMORY.exists() else {}


def remember(session: str, *prompts: str) -> None:
    kept = sessions()
    kept.setdefault(session, []).extend(prompts)
    MEMORY.with_suffix(".new").write_text(json.dumps(kept))
    MEMORY.with_suffix(".new").rename(MEMORY)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    if "stay" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "garbage" in OPTIONS:
        print("Usage: agent [--acp]\nGarbage", flush=True)
        sys.exit(2)
    Agent().serve()
