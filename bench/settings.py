"""How a run is asked to measure: how often, how long, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """`folder` must lie on the disk that is to be measured. `scale` 1 is the full run; the smoke run uses a fraction."""

    folder: Path
    scale: float = 1.0
    minutes: float | None = None
    base_image: str = ""

    def count(self, full: int, at_least: int = 3) -> int:
        """A number of repetitions or rows at this run's scale."""
        return max(at_least, round(full * self.scale))
