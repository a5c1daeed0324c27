"""The clawbus command as a test calls it: in this process, with its output caught and its envelope checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.main import main


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def envelope(self) -> dict[str, Any]:
        """The one line of JSON; its shape is checked here, for every test that looks at one."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        envelope = json.loads(lines[0])
        assert list(envelope) == [
            key
            for key in ("ok", "command", "result", "error", "fix", "next_actions")
            if envelope["ok"] is False or key not in ("error", "fix")
        ]
        assert envelope["ok"] is (self.code == 0)
        if not envelope["ok"]:
            assert envelope["error"]["code"].isupper()
            assert envelope["error"]["message"]
            assert envelope["fix"]
        for action in envelope["next_actions"]:
            assert action["command"].startswith(("clawbus ", "systemctl start ", "systemctl restart "))
            assert action["description"]
        return envelope

    @property
    def result(self) -> Any:
        envelope = self.envelope
        assert envelope["ok"], envelope
        return envelope["result"]


class CommandLine:
    """`cli("status")` runs it where `config` is the folder's own, with --json unless the arguments name a form."""

    def __init__(self, capfd: pytest.CaptureFixture[str], config: Path) -> None:
        self._capfd = capfd
        self.config = config

    def __call__(self, *arguments: str) -> Answer:
        self._capfd.readouterr()
        form = () if {"--pretty", "--no-json", "--output", "-o"} & set(arguments) else ("--json",)
        code = main([*form, *arguments])
        out, err = self._capfd.readouterr()
        return Answer(code, out, err)
