"""A model server on loopback for real agents: Anthropic Messages, OpenAI Responses and Chat Completions, Gemini; streamed.

A prompt with `RUN command` asks for the agent's shell tool once; any other is answered with the number of messages that
it came with. It keeps each request's path and key.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RUN = re.compile(r"RUN ([^\"\\]+)")


class FakeModel:
    """What the server was asked: (path, key), in order. A prompt `SLOW` sets `slow` and waits for `go_on`."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, str]] = []
        self.slow = threading.Event()
        self._going = threading.Event()

    def go_on(self) -> None:
        """Answer what waits, and forget that anything did."""
        self._going.set()
        self._going = threading.Event()
        self.slow.clear()

    def hold(self) -> None:
        """Wait until `go_on`, or a minute."""
        going = self._going
        self.slow.set()
        going.wait(60)


@contextmanager
def fake_model() -> Iterator[FakeModel]:
    model = FakeModel()

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            model.asked.append((self.path, next((key for name in _KEYS if (key := self.headers.get(name))), "none")))
            path = self.path.partition("?")[0]
            if path.endswith(":generateContent"):  # Gemini CLI asks beside the conversation which model to use
                self.answer("application/json", [json.dumps(gemini_says({"text": _ROUTED}))])
                return
            form = next((made for end, made in _FORMS if path.endswith(end)), None)
            if form is None:  # Hermes asks servers of other kinds for their models
                self.send_error(404)
                return
            sent = [*form(body)]
            if form is chat and not body.get("stream"):  # Hermes asks so for a session's title
                self.answer("application/json", [json.dumps(whole(sent))])
                return
            if "SLOW" in json.dumps(newest(body)) and not model.slow.is_set():
                model.hold()
            names = [f"event: {one['type']}\n" if form in (anthropic, openai) else "" for one in sent]
            parts = [f"{name}data: {json.dumps(one)}\n\n" for name, one in zip(names, sent, strict=True)]
            self.answer("text/event-stream", [*parts, *(["data: [DONE]\n\n"] if form is chat else [])])

        def answer(self, kind: str, parts: list[str]) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # whoever asked has gone
                for part in parts:
                    self.wfile.write(part.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            model.port = server.server_address[1]
            yield model
        finally:
            server.shutdown()


def newest(body: Mapping[str, Any]) -> object:
    """The last entry that a request comes with."""
    told = body.get("messages") or body.get("input") or body.get("contents") or [None]
    return told[-1]


def anthropic(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    said = json.dumps(body["messages"])  # an agent may put notices of its own behind the prompt
    wanted = _RUN.search(said) if body.get("tools") and '"type": "tool_result"' not in said else None
    usage = {"input_tokens": 11, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": body.get("model"), "content": []}
    yield {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}}
    if wanted is None:
        text = f"{len(body['messages'])} messages"
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": text}
    else:
        block = {"type": "tool_use", "id": "tu1", "name": "Bash", "input": {}}
        call = json.dumps({"command": wanted.group(1), "description": "asked for"})
        delta = {"type": "input_json_delta", "partial_json": call}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    reason = "end_turn" if wanted is None else "tool_use"
    yield {
        "type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": 7},
    }  # fmt: skip
    yield {"type": "message_stop"}


def openai(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Responses (platform.openai.com/docs/api-reference/responses-streaming)."""
    told = json.dumps(body["input"])
    wanted = _RUN.search(told) if '"type": "custom_tool_call_output"' not in told else None
    text = f"{len(body['input'])} messages"
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item: dict[str, Any] = {
        "type": "message", "id": "i1", "role": "assistant", "status": "completed", "content": content,
    }  # fmt: skip
    if wanted is not None and '"name": "exec"' in told:
        item = {"type": "custom_tool_call", "id": "i1", "call_id": "c1", "name": "exec", "input": code(wanted.group(1))}
    usage = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
    yield {"type": "response.created", "response": {"id": "r1"}}
    if item["type"] == "message":
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}
        at = {"item_id": "i1", "output_index": 0, "content_index": 0}
        yield {"type": "response.output_text.delta", **at, "delta": text}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": {"id": "r1", "output": [item], "usage": usage}}


def code(command: str) -> str:
    """Return the script for Codex's tool `exec` that runs a command outside its sandbox, for which it asks."""
    wanted = {"cmd": command, "sandbox_permissions": "require_escalated", "justification": "asked for"}
    return f"text(await tools.exec_command({json.dumps(wanted)}))"


def chat(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Chat Completions (platform.openai.com/docs/api-reference/chat-streaming)."""
    told = body["messages"]
    wanted = _RUN.search(json.dumps(told)) if told[-1]["role"] == "user" else None
    names = [one["function"]["name"] for one in body.get("tools", [])]
    shell = next((name for name in names if name in _SHELLS), None)
    delta: dict[str, Any] = {"role": "assistant", "content": f"{len(told)} messages"}
    if wanted is not None and shell is not None:
        function = {
            "name": shell,
            "arguments": json.dumps({"command": wanted.group(1), "description": "asked for", "is_background": False}),
        }
        delta = {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}],
        }
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}
    yield {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    reason = "tool_calls" if "tool_calls" in delta else "stop"
    yield {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    yield {**base, "choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}}


def whole(sent: list[dict[str, Any]]) -> dict[str, Any]:
    """The chunks of a streamed chat completion as one that is not streamed."""
    message, usage = sent[0]["choices"][0]["delta"], sent[-1]["usage"]
    choice = {"index": 0, "message": message, "finish_reason": sent[1]["choices"][0]["finish_reason"]}
    return {**sent[0], "object": "chat.completion", "choices": [choice], "usage": usage}


def gemini(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """streamGenerateContent (ai.google.dev/api/generate-content)."""
    told = body["contents"]
    last = json.dumps(told[-1])
    wanted = _RUN.search(json.dumps(told)) if "functionResponse" not in last and body.get("tools") else None
    part: dict[str, Any] = {"text": f"{len(told)} messages"}
    if wanted is not None:
        part = {
            "functionCall": {
                "name": "run_shell_command",
                "args": {"command": wanted.group(1), "description": "asked for"},
            }
        }
    yield gemini_says(part)


def gemini_says(part: Mapping[str, Any]) -> dict[str, Any]:
    """An answer of one part."""
    usage = {"promptTokenCount": 12, "candidatesTokenCount": 3, "totalTokenCount": 15}
    return {
        "candidates": [{"index": 0, "content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}],
        "usageMetadata": usage,
    }


_KEYS = ("x-api-key", "x-goog-api-key", "authorization")
_ROUTED = json.dumps(
    {
        "reasoning": "x",
        "model_choice": "flash",
        "complexity_reasoning": "x",
        "complexity_score": 1,
        "next_speaker": "user",
    }
)
_SHELLS = ("bash", "run_shell_command", "terminal", "Bash")
_FORMS = (
    ("/messages", anthropic), ("/responses", openai), ("/chat/completions", chat), (":streamGenerateContent", gemini),
)  # fmt: skip
