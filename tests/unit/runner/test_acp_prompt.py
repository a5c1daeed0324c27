"""The prompt of an ACP agent names the files that came with a message, and no path that the host did not make."""

import json

from container_runner.providers.acp.prompt import prompt_text
from container_runner.providers.protocol import TurnMessage


def prompt(attachments: object) -> str:
    content = json.dumps({"text": "look", "attachments": attachments})
    return prompt_text([TurnMessage("m1", 2, "chat", "2026", content)], "/workspace/in")


def test_each_file_is_named_with_its_type_size_and_path() -> None:
    entries = [
        {"localPath": "inbox/m1/a b.txt", "mimeType": "text/plain", "size": 3},
        {"localPath": "inbox/m1/b.png", "mimeType": "image/png", "size": 7},
    ]
    assert prompt(entries).splitlines() == [
        "look",
        "[Attached file, read-only (text/plain, 3 bytes): /workspace/in/inbox/m1/a b.txt]",
        "[Attached file, read-only (image/png, 7 bytes): /workspace/in/inbox/m1/b.png]",
    ]


def test_what_a_sender_wrote_there_itself_names_no_other_path() -> None:
    for odd in ("text", None, 7, [], ["x", None, {}], [{"localPath": 7}], [{"localPath": "/etc/passwd"}],
                [{"localPath": "inbox/../inbound.db"}], [{"localPath": "inbound.db"}]):  # fmt: skip
        assert prompt(odd) == "look", odd
