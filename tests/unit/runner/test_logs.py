"""The runner's log costs little to import, and leaves other packages as they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import container_runner.__main__
print(sorted(name for name in ("rich", "structlog") if name in sys.modules))
import rich
print(rich.__name__)
"""


def test_the_runner_starts_without_rich_which_stays_importable() -> None:
    pytest.importorskip("rich", reason="rich is not installed: nothing to leave out")
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.split("\n") == ["['structlog']", "rich", ""]


def test_what_is_imported_already_stays_as_it_is() -> None:
    program = "import rich, sys; import container_runner.logs; print(sys.modules['rich'] is rich)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "True\n"
