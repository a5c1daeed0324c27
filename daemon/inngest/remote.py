"""Runs an operation where the database is: inside a pod or container, through a command such as `kubectl exec POD --`.

The same program runs there: its modules go as a zip through standard input into a memory file, so nothing is installed and
nothing is left behind. Copying the file out and back is not done, because SQLite's locks hold on the machine that has the
file only, and a copy put back would undo what the server wrote meanwhile. It needs Python 3.11 there and nothing else.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any, Final, cast

from daemon.inngest.errors import InngestExecError

_TIMEOUT_S: Final = 3600.0
_PYTHON: Final = "python3"
_PACKAGES: Final = (
    ("schema", ""),
    ("daemon", "__init__.py"),
    ("daemon.inngest", ""),
    ("daemon.maintenance", "__init__.py backup.py"),
    ("daemon.core", "__init__.py repair_errors.py"),
)
_TELLS: Final = ("kubectl", "oc", "docker", "podman", "nerdctl")
# Small, and old Python's syntax: it must be able to say that the Python there is too old.
BOOT: Final = """
import base64, json, os, sys
def fail(text):
    print(json.dumps({"failed": text}))
    sys.exit(0)
if sys.version_info < (3, 11):
    fail("Python there is %d.%d; 3.11 is needed." % sys.version_info[:2])
line = sys.stdin.buffer.readline()
if not line:
    fail("standard input does not arrive there.")
file = os.memfd_create("clawbus")
data = base64.b64decode(line)
while data:
    data = data[os.write(file, data):]
sys.path.insert(0, "/proc/self/fd/%d" % file)
from daemon.inngest.remote_main import main
main()
"""


def operate_there(command: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run `operations.operate` through `command`. Raise InngestExecError when there is no answer."""
    words = command_words(command)
    request = json.dumps({"name": name, "options": options})
    given = base64.b64encode(bundle()) + b"\n" + request.encode() + b"\n"
    try:
        done = subprocess.run(
            [*words, _PYTHON, "-c", BOOT], input=given, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise InngestExecError(f"{words[0]}: {error.strerror}.") from error
    except subprocess.TimeoutExpired as error:
        raise InngestExecError(f"no answer from `{command}` within {_TIMEOUT_S:g} s.") from error
    return _answer(done, command)


def command_words(command: str) -> list[str]:
    """Return the command as a list. Add `-i` to `exec` of kubectl, docker and the like, which would ignore standard input."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InngestExecError(f"--exec {command!r}: {error}.") from error
    if not words:
        raise InngestExecError("--exec names no command.")
    if PurePath(words[0]).name not in _TELLS or "exec" not in words:
        return words
    place = words.index("exec") + 1
    given = words[: words.index("--")] if "--" in words else words
    passes = any(
        one in ("--stdin", "--interactive") or (one[:1] == "-" and one[1:2] != "-" and "i" in one) for one in given
    )
    return words if passes else [*words[:place], "-i", *words[place:]]


def bundle() -> bytes:
    """Return the modules that an operation needs, as a zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for package, only in _PACKAGES:
            folder = package.replace(".", "/")
            for file in _modules(files(package), only.split()):
                archive.writestr(f"{folder}/{file.name}", file.read_bytes())
    return packed.getvalue()


def _modules(folder: Traversable, only: Sequence[str]) -> Iterator[Traversable]:
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.is_file() and PurePath(file.name).suffix in (".py", ".sql") and (not only or file.name in only):
            yield file


def _answer(done: subprocess.CompletedProcess[bytes], command: str) -> dict[str, Any]:
    said = done.stderr.decode("utf-8", "replace").strip()[-500:]
    lines = done.stdout.splitlines()
    try:
        parsed: object = json.loads(lines[-1]) if lines else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise InngestExecError(
            f"`{command} {_PYTHON}` ended with {done.returncode} and no answer: {said or 'nothing on standard error'}"
        )
    answer = cast("dict[str, Any]", parsed)
    if "failed" in answer:
        raise InngestExecError(f"`{command}`: {answer['failed']}")
    return answer
