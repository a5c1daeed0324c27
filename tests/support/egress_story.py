"""An agent that asks a model through the gate, over a real daemon of either runtime: what both runtimes must show."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from tests.support.daemon import RealDaemon

PROGRAM: Final = Path(__file__).with_name("egress_agent.py")
SECRET: Final = "sk-ant-REAL-0123456789abcdef"


class Model(ThreadingHTTPServer):
    """A model service on loopback that remembers the keys that it saw."""

    daemon_threads = True

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Model)
        self.server.keys.append(self.headers.get("x-api-key"))
        self.rfile.read(int(self.headers.get("content-length", "0")))
        text = f"the model says {self.path}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base's name
        """Say nothing."""


@contextmanager
def model() -> Iterator[Model]:
    with Model() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def tables(server: Model, key: Path, python: str) -> str:
    """The agent `asks`, and the route that it may use."""
    here = f"127.0.0.1:{server.server_address[1]}"
    return f"""
[egress]
private_targets = ["{here}"]
[egress.routes.model]
upstream = "http://{here}"
header = "x-api-key"
secret_file = {json.dumps(str(key))}
agents = ["asks"]
env = {{ MODEL_URL = "{{url}}", MODEL_KEY = "placeholder" }}
[agents.asks]
command = {json.dumps([python, "-I", "-S", PROGRAM.name])}
timeout_s = 60.0
"""


def give_program(daemon: RealDaemon) -> None:
    folder = daemon.data / "agents" / "asks"
    folder.mkdir(parents=True)
    shutil.copy(PROGRAM, folder)
    for one in (daemon.data, daemon.data / "agents"):
        one.chmod(0o700)


def tell(daemon: RealDaemon, server: Model, key: Path) -> None:
    """Ask, change the key, kill the daemon under the running container, start another, and ask again each time."""
    give_program(daemon)
    key.write_text(SECRET)
    daemon.start()
    assert daemon.ask("/one", agent="asks", session="s")["text"] == "the model says /one"
    container = daemon.container("asks", "s")["container_id"]
    key.write_text(f"{SECRET}-2")
    assert daemon.ask("/two", agent="asks", session="s")["text"] == "the model says /two"
    daemon.kill()
    daemon.start()
    assert daemon.ask("/three", agent="asks", session="s")["text"] == "the model says /three"
    assert daemon.container("asks", "s")["container_id"] == container
    key.write_text("")
    assert "EGRESS_SECRET" in daemon.ask("/five", agent="asks", session="s")["text"]
    key.write_text(SECRET)
    assert server.keys == [SECRET, f"{SECRET}-2", f"{SECRET}-2"]


def leaks(daemon: RealDaemon, key: Path) -> list[str]:
    """Where the secret can be read besides its own file: the data folder, a backup, what commands print, the agent."""
    backup = daemon.root / "backup"
    daemon.cli("backup", str(backup))
    found = [
        str(path)
        for top in (daemon.data, backup, daemon.root)
        for path in top.rglob("*")
        if path != key and path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    printed = {
        "status": json.dumps(daemon.cli("status").envelope),
        "doctor": json.dumps(daemon.cli("doctor").envelope),
        "session show": json.dumps(daemon.cli("session", "show", "asks", "s").envelope),
        "config check": json.dumps(daemon.cli("config", "check").envelope),
        "the agent": daemon.ask("walk", agent="asks", session="s")["text"],
    }
    assert "MODEL_KEY=placeholder" in printed["the agent"]
    return found + [name for name, text in printed.items() if SECRET in text]
