"""`locks/make-venv`: what it says about a missing prerequisite, while it works, and when a package cannot be had."""

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

SCRIPT: Final = Path(__file__).resolve().parents[2] / "locks" / "make-venv"
PIP_SAYS: Final = """\
Looking in indexes: https://index.example/simple
WARNING: Location 'file:///somewhere' is ignored: it is neither a file nor a directory.
Collecting annotated-doc==0.0.7 (from -r LOCK (line 1))
  Downloading annotated_doc-0.0.7-py3-none-any.whl (5 kB)
Processing /wheels/typing_extensions-4.16.0-py3-none-any.whl (from -r LOCK (line 4))
Installing collected packages: annotated-doc, typing-extensions
"""
PIP_FAILS: Final = """\
WARNING: Retrying (Retry(total=4)) after connection broken: /simple/cronsim/
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.
    cronsim==2.8:
"""


def fake_python(
    folder: Path, *, version: str = "3.11", ensurepip: bool = True, pip: str = PIP_SAYS, code: int = 0
) -> Path:
    """An interpreter that knows the calls of the script. Its `venv` copies it; its `pip` prints and ends with `code`."""
    folder.mkdir()
    (folder / "pip.txt").write_text(pip)
    program = folder / "python3"
    program.write_text(f"""#!/bin/sh
case "$*" in
*version_info*) echo {version} ;;
*ensurepip*) exit {0 if ensurepip else 1} ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*editable*) ;;
*"-m pip "*) cat {folder}/pip.txt; exit {code} ;;
*) exit 99 ;;
esac
""")
    program.chmod(0o755)
    return program


def run(tmp_path: Path, python: Path | str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), str(tmp_path / "venv"), str(python), "locks/runtime.txt"]
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").symlink_to("/bin/true")  # whatever this machine has
    environ = {"PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"version": "3.9"}, "clawbus needs Python 3.11 to 3.14, and {python} is 3.9; "),
        ({"version": "3.15"}, "clawbus needs Python 3.11 to 3.14, and {python} is 3.15; "),
        ({"ensurepip": False}, "apt install python3-venv\n"),
    ],
)
def test_what_python_lacks_is_said_in_one_line(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    python = fake_python(tmp_path / "fake", **changed)
    done = run(tmp_path, python)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("make-venv: ")
    assert done.stderr.count("\n") == 1
    assert says.format(python=python) in done.stderr
    assert "apt install " in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    done = run(tmp_path, "python3.99")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("make-venv: python3.99 is missing")
    assert done.stderr.endswith("apt install python3.99 python3.99-venv\n")


def test_every_step_and_package_is_named_and_no_place(tmp_path: Path) -> None:
    done = run(tmp_path, fake_python(tmp_path / "fake"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line[:5] for line in lines if line.startswith("[")] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert lines.count("      annotated-doc typing_extensions") == 2
    assert "example" not in done.stdout
    assert "/wheels" not in done.stdout
    assert (tmp_path / "venv" / "bin" / "python").is_file()


def test_a_package_that_cannot_be_had_leaves_nothing_and_shows_pips_error(tmp_path: Path) -> None:
    done = run(tmp_path, fake_python(tmp_path / "fake", pip=PIP_SAYS + PIP_FAILS, code=1))
    assert done.returncode == 1
    assert done.stdout.endswith("      annotated-doc typing_extensions\n      unpacking and compiling them\n")
    errors = done.stderr.splitlines()
    assert errors[:3] == PIP_FAILS.splitlines()
    assert errors[3].startswith("make-venv: the packages of locks/runtime.txt could not be installed")
    assert not (tmp_path / "venv").exists()
