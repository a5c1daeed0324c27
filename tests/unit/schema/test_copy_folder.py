"""Copies in the temporary folder: none outlives its process for long, and none is taken from a process that lives."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from schema.copy_folder import copy_folder

HOLDS = """
import sys
from schema.copy_folder import copy_folder
with copy_folder() as folder:
    (folder / "copy").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def made_by_another(folder: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process that holds a folder, which is made old."""
    command = [sys.executable, "-c", HOLDS]
    process = subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder)}
    )
    assert process.stdout is not None
    held = Path(process.stdout.readline().strip())
    old = time.time() - 3600
    os.utime(held, (old, old))
    return process, held


def test_the_folder_goes_with_the_block(tmp_path: Path) -> None:
    with copy_folder() as folder:
        (folder / "copy").touch()
        assert folder.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_another_holds_stays(tmp_path: Path) -> None:
    process, held = made_by_another(tmp_path)
    with process:
        with copy_folder():
            assert (held / "copy").exists(), "its process works with it"
        process.send_signal(signal.SIGKILL)
    foreign = tmp_path / "clawbus-image-1"
    foreign.mkdir()
    os.utime(foreign, (0, 0))
    with copy_folder() as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, foreign])
