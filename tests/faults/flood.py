"""One session floods a receiver that hangs: `python -m tests.faults.flood processes --threads 1500 --hang 60`.

An agent writes an answer to each of many threads at once; their receiver takes the requests and answers none for a minute,
then all. Meanwhile another hook, and another session's mailbox, are measured. Prints one JSON object; exit code 1 when an
answer is missing, or when the others' round trip was over a second at p99. It ends whatever it started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.support.agent_image import agent_image
from tests.support.daemon import RealDaemon, eventually
from tests.support.webhooks import free_port

PROGRAM: Final = """
import json, sys
text = json.load(sys.stdin)["messages"][-1]["content"]["text"]
verb, _, count = text.partition(" ")
if verb == "flood":
    for number in range(int(count)):
        print(json.dumps({"type": "message", "text": f"n{number}", "thread_id": f"t{number}"}))
else:
    print(text)
"""
CONFIG: Final = """
[runtime]
kind = "{kind}"
max_containers = 8
[docker]
image = "{image}"
[sweep]
interval_s = 2.0
[channels.webhook]
listen = "127.0.0.1:{port}"
[channels.webhook.hooks.bad]
agent = "prog"
session = "*"
secret = "inbound-secret"
reply_url = "{bad}"
reply_secret = "outbound-secret"
[channels.webhook.hooks.good]
agent = "prog"
session = "*"
secret = "inbound-secret"
reply_url = "{good}"
reply_secret = "outbound-secret"
[agents.prog]
provider = "command"
command = {command}
"""
P99_S: Final = 1.0


@dataclass(slots=True)
class Receiver:
    """Keeps each text and when it came; holds its answers back until `answers` is set."""

    url: str = ""
    answers: threading.Event = field(default_factory=threading.Event)
    taken: dict[str, float] = field(default_factory=dict[str, float])
    requests: Counter[str] = field(default_factory=Counter[str])
    now: int = 0
    most: int = 0  # requests under way at once


@contextmanager
def receiving(*, hangs: bool) -> Iterator[Receiver]:
    """On a loopback port, for as long as the block runs."""
    found, lock = Receiver(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            text = str(json.loads(body)["content"]["text"])
            with lock:
                found.now += 1
                found.most = max(found.most, found.now)
                found.requests[text] += 1
            found.answers.wait(600)
            with lock:
                found.now -= 1
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()
                found.taken.setdefault(text, time.monotonic())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """A request that was given up; that is what we are here for."""

    server = Server(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}/reply"
    if not hangs:
        found.answers.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        found.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(slots=True)
class Report:
    """Seconds, and what is wrong."""

    threads: int
    arrived: int = 0
    repeated: int = 0
    most_at_once: int = 0
    took_s: float = 0.0
    mailbox: list[float] = field(default_factory=list[float])
    hook: list[float] = field(default_factory=list[float])
    degraded: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        """For a table."""
        return {
            "threads": self.threads, "arrived": self.arrived, "missing": len(self.missing), "repeated": self.repeated,
            "most_at_once": self.most_at_once, "took_s": round(self.took_s, 1), "samples": len(self.mailbox),
            "mailbox_p50_s": at(self.mailbox, 0.5), "mailbox_p99_s": at(self.mailbox, 0.99), "mailbox_max_s": at(self.mailbox, 1),
            "hook_p50_s": at(self.hook, 0.5), "hook_p99_s": at(self.hook, 0.99), "hook_max_s": at(self.hook, 1),
            "degraded": self.degraded,
        }  # fmt: skip


def at(samples: list[float], part: float) -> float:
    """A percentile."""
    ordered = sorted(samples) or [0.0]
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 3)


def flood(kind: str, image: str, threads: int, *, hang_s: float, samples: int, patience_s: float = 300.0) -> Report:
    """Until the receiver has hung for `hang_s` seconds and there are `samples` of the others; then until all has arrived."""
    report = Report(threads)
    with receiving(hangs=True) as bad, receiving(hangs=False) as good, contextlib.ExitStack() as stack:
        daemon = RealDaemon()
        stack.callback(daemon.close)
        python = sys.executable if kind == "process" else "python3"
        command = json.dumps([python, "-c", PROGRAM])
        daemon.configure(
            CONFIG.format(kind=kind, image=image, port=free_port(), bad=bad.url, good=good.url, command=command)
        )
        daemon.start()
        ask(daemon, "quiet", "warm", report.mailbox)
        report.mailbox.clear()
        began = time.monotonic()
        daemon.post(f"flood {threads}", agent="prog", session="loud", address=place("bad"))
        eventually("the flood", lambda: bad.most >= 1, 60)
        while time.monotonic() - began < hang_s or len(report.hook) < samples:
            number = len(report.hook)
            ask(daemon, "quiet", f"mailbox-{number}", report.mailbox)
            through(daemon, good, f"hook-{number}", report.hook, patience_s)
            time.sleep(0.05)
        report.degraded = [one["what"] for one in daemon.status()["live"]["degraded"]]
        bad.answers.set()
        wanted = {f"n{number}" for number in range(threads)}
        deadline = time.monotonic() + patience_s
        while not wanted <= bad.taken.keys() and time.monotonic() < deadline:
            time.sleep(0.2)
        report.took_s = time.monotonic() - began
        report.missing = sorted(wanted - bad.taken.keys())
        report.arrived, report.most_at_once = len(wanted & bad.taken.keys()), bad.most
        report.repeated = sum(count > 1 for count in bad.requests.values())
        eventually(
            "every receipt", lambda: not daemon.rows("prog", "loud", "SELECT 1 FROM delivery_attempts LIMIT 1"), 60
        )
    return report


def ask(daemon: RealDaemon, session: str, text: str, samples: list[float]) -> None:
    """One round trip over the mailbox."""
    began = time.monotonic()
    assert daemon.ask(text, agent="prog", session=session, wait_s=120)["text"] == text
    samples.append(time.monotonic() - began)


def through(daemon: RealDaemon, receiver: Receiver, text: str, samples: list[float], patience_s: float) -> None:
    """One round trip to another hook's receiver."""
    began = time.monotonic()
    daemon.post(text, agent="prog", session="other", address=place("good"))
    while text not in receiver.taken:
        assert time.monotonic() - began < patience_s, f"{text} never came"
        time.sleep(0.005)
    samples.append(receiver.taken[text] - began)


def place(hook: str) -> dict[str, str]:
    """The address whose answers go to the hook's receiver."""
    return {"channel_type": "webhook", "platform_id": hook}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.flood", description=__doc__)
    parser.add_argument("part", choices=("processes", "containers"))
    parser.add_argument("--threads", type=int, default=1500)
    parser.add_argument("--hang", type=float, default=60.0)
    parser.add_argument("--base", default="base-debian:bookworm", help="the image to build the agents' on")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        containers = options.part == "containers"
        image = stack.enter_context(agent_image(options.base)) if containers else "unused"
        found = flood(
            "docker" if containers else "process", image, options.threads, hang_s=options.hang, samples=100
        ).as_json()
    print(json.dumps(found, indent=2))
    slow = max(found["mailbox_p99_s"], found["hook_p99_s"]) > P99_S
    return 1 if found["missing"] or slow else 0


if __name__ == "__main__":
    sys.exit(main())
