"""Files of a real Inngest server, unpacked. What they are is told in `inngest_files/README.md`."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "inngest_files"
MADE: Final = 1_795_821_120_000  # 2026-11-27 23:12:00 UTC: about when the first runs began


def unpack(name: str, folder: Path) -> Path:
    """One of the files, as `main.db` in a folder."""
    path = folder / "main.db"
    path.write_bytes(gzip.decompress((_FOLDER / f"{name}.db.gz").read_bytes()))
    return path
