"""A model server on loopback for real agents: Anthropic Messages and OpenAI Responses, both streamed.

A prompt with `RUN command` asks for the agent's shell tool once; any other is answered with the number of messages that
it came with. It keeps each request's path and key.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RUN = re.compile(r"RUN ([^\"\\]+)")


class FakeModel:
    """What the server was asked: (path, key), in order."""

    def __init__(self, port: int, asked: list[tuple[str, str]]) -> None:
        self.port = port
        self.asked = asked


@contextmanager
def fake_model() -> Iterator[FakeModel]:
    asked: list[tuple[str, str]] = []

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            asked.append((self.path, str(self.headers.get("x-api-key") or self.headers.get("authorization"))))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            events = anthropic(body) if "/messages" in self.path else openai(body)
            for event in events:
                self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield FakeModel(server.server_address[1], asked)
        finally:
            server.shutdown()


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
    text = f"{len(body['input'])} messages"
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"type": "message", "id": "i1", "role": "assistant", "status": "completed", "content": content}
    usage = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
    yield {"type": "response.created", "response": {"id": "r1"}}
    yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}
    at = {"item_id": "i1", "output_index": 0, "content_index": 0}
    yield {"type": "response.output_text.delta", **at, "delta": text}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": {"id": "r1", "output": [item], "usage": usage}}
