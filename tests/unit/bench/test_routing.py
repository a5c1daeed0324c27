"""The router's benchmark measures both figures, on a scale at which they mean nothing."""

from pathlib import Path

from bench.routing import measure
from bench.settings import Settings


def test_it_measures_a_decision_and_the_memory(tmp_path: Path) -> None:
    found = measure(Settings(tmp_path, 0.001))
    assert [figure.unit for figure in found.figures] == ["us", "MB"]
    assert all(figure.value is not None and figure.value >= 0 for figure in found.figures)
