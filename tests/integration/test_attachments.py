"""A file that came with a message, from the real command line to an agent program's hands."""

import sys
from collections.abc import Callable

from tests.support.agents import command_agent
from tests.support.daemon import RealDaemon

READER = """
import json, sys
turn = json.load(sys.stdin)
[file] = turn["messages"][0]["content"]["attachments"]
with open(f"{turn['in_folder']}/{file['localPath']}", "rb") as opened:
    print(file["name"], file["mimeType"], file["size"] == len(opened.read()))
"""


def test_the_agent_reads_the_file_where_its_turn_says(make_daemon: Callable[..., RealDaemon]) -> None:
    daemon = make_daemon(command_agent("prog", (sys.executable, "-I", "-c", READER)))
    daemon.start()
    path = daemon.root / "a report.pdf"
    path.write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 4000)
    sent = daemon.cli("send", "look", "--agent", "prog", "--session", "s", "--file", str(path), "--wait", "30")
    assert sent.result["answer"]["text"] == "a report.pdf application/pdf True"
    daemon.at_rest = True
