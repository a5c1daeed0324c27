"""Every command of the tree, also one that is new: in a pipe, with a reader that has left, and in an encoding without its characters.

Never a traceback, and the exit code is the deed's in all three. The commands run on a folder in which every list has a row.
"""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.main import command_tree, main
from tests.unit.cli.long_names import AGENT, ANSWER, MESSAGE, SESSION, WORKING, fill

KEY = f"{AGENT}/{SESSION}"
# The daemon itself; what builds images or environments, or looks at this machine's own releases.
NOT_HERE = ("serve", "image build", "release", "source", "deploy", "worker")
CHANGES = ("dead drop", "delivery drop", "backup", "user add")
WORDS: dict[str, tuple[str, ...]] = {
    "send": ("a text", "--session", KEY),
    "chat": ("--session", KEY),
    "session show": (KEY,),
    "run show": (WORKING,),
    "message show": (MESSAGE,),
    "dead show": (MESSAGE,),
    "dead drop": (ANSWER,),
    "delivery drop": (f"{ANSWER[:-1]}B",),
    "agent show": (AGENT,),
    "top": ("--once",),
    "completion": ("bash",),
    "help": ("session", "show"),
}


def leaves() -> Iterator[tuple[str, Any]]:
    tree: Any = command_tree()
    for name, command in tree.commands.items():
        children: dict[str, Any] = getattr(command, "commands", None) or {"": command}
        for child, leaf in children.items():
            path = f"{name} {child}".strip()
            if not path.startswith(NOT_HERE):
                yield path, leaf


def words_of(path: str, command: Any) -> tuple[str, ...]:
    """The command with what it needs: its words of the table, else an `x` for each."""
    if path in WORDS:
        return (*path.split(), *WORDS[path])
    needed = [one for one in command.params if one.required]
    return (*path.split(), *(word for one in needed for word in _given(one)))


def _given(parameter: Any) -> tuple[str, ...]:
    return ("x",) if parameter.param_type_name == "argument" else (parameter.opts[0], "x")


def run(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], encoding: str, descriptor: int) -> int:
    """Run it with this standard output, and return the exit code. Standard error is kept apart, and checked."""
    with (
        os.fdopen(descriptor, "w", encoding=encoding) as out,
        os.fdopen(os.memfd_create("err"), "w+", encoding=encoding) as err,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "stdin", io.StringIO(""))
        code = main(list(words))
        err.flush()
        err.seek(0)
        assert "Traceback" not in err.read()
        return code


def gone() -> int:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(("path", "command"), list(leaves()), ids=lambda value: value if isinstance(value, str) else "")
def test_it_ends_alike_wherever_its_output_goes(
    home: Path, monkeypatch: pytest.MonkeyPatch, path: str, command: Any
) -> None:
    fill(home)
    words = words_of(path, command)
    codes: dict[str, int] = {}
    for encoding in ("utf-8", "ascii"):
        kept = os.memfd_create("out")
        codes[encoding] = run(monkeypatch, words, encoding, os.dup(kept))
        os.lseek(kept, 0, os.SEEK_SET)
        said = os.read(kept, 1 << 20)
        os.close(kept)
        said.decode(encoding)
        assert b"Traceback" not in said
    codes["gone"] = run(monkeypatch, words, "utf-8", gone())
    if path in CHANGES:  # the second time there is nothing left to do
        assert codes.pop("utf-8") == 0
    assert len(set(codes.values())) == 1, codes
    assert set(codes.values()) <= {0, 1, 2}
