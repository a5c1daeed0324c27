"""What of an Inngest server the commands can notice: an event endpoint over one main.db, and a process that has it open.

The endpoint answers as `POST /e/KEY` does ({"ids": [ULID], "status": 200}), and writes the run that the event starts into
the database, as its function would be seen there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from daemon.inngest.values import run_key
from tests.support.inngest_db import HEALTH, InngestDb, event_key

SIGNING_KEY = "signkey-test-0123"
_HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2].split(";"):
    db.execute(statement).fetchone()
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def event_endpoint(db: InngestDb, **run: Any) -> Generator[tuple[str, list[dict[str, Any]]]]:
    """Its URL, and the events that came. `run` is what becomes of the run (`InngestDb.run`); `answer` replaces the answer."""
    came: list[dict[str, Any]] = []
    answer: bytes | None = run.pop("answer", None)
    listing: bytes | None = run.pop("listing", None)
    status: int = run.pop("code", 200)

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            made = db.run(HEALTH, age=0, **run)
            body = answer if answer is not None else json.dumps({"ids": [event_key(made.key)], "status": 200}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            """`GET /v1/events/ID/runs`, with what the database says, for who has the signing key."""
            accepted = self.headers["Authorization"] == f"Bearer {SIGNING_KEY}"
            event = self.path.split("/")[3]
            rows = db.all("SELECT run_id, function_id, status FROM trace_runs WHERE trigger_ids = ?", (event.encode(),))
            names = {200: "Running", 300: "Completed", 400: "Failed", 500: "Cancelled"}
            told = [
                {"run_id": run_key(run), "function_id": function, "status": names[code]} for run, function, code in rows
            ]
            body = json.dumps({"data": told}).encode() if listing is None else listing
            self.send_response(status if accepted else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/e/key", came
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def open_elsewhere(path: Path, *, statement: str = "SELECT count(*) FROM trace_runs") -> Generator[int]:
    """Another process that has the database open, after one statement such as BEGIN EXCLUSIVE; its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), statement], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield process.pid
        finally:
            process.communicate(b"")
