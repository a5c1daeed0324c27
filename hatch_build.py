"""Adds the manual page to a wheel, as share/man/man1/clawbus.1: made from the commands' own help."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# An isolated build has none of the packages that the commands import: the page then has each one's sentence and no options.
_MAKE = """
import sys
try:
    from daemon.cli.main import manual
except ImportError:
    from daemon.cli.man_page import short_page as manual
sys.stdout.write(manual(sys.argv[1]))
"""


class ManualPage(BuildHookInterface[Any]):
    """hatchling calls it for each wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the page in a folder of its own and have it packed. `version` is "editable" for a checkout that is linked."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        page = Path(self._folder.name) / "clawbus.1"
        made = subprocess.run(
            [sys.executable, "-c", _MAKE, self.metadata.version],
            cwd=self.root, env={**os.environ, "PYTHONPATH": self.root, "PYTHONIOENCODING": "utf-8"}, capture_output=True,
            check=True, timeout=120,
        )  # fmt: skip
        page.write_bytes(made.stdout)
        build_data["shared_data"][str(page)] = "share/man/man1/clawbus.1"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        if version != "editable":
            self._folder.cleanup()
