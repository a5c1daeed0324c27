"""The benchmarks run, on a scale at which their figures mean nothing. Shapes and counts are looked at, never a time."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.figures import KEYS


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have short enough names: a worker's tmp_path is too long for AF_UNIX."""
    with tempfile.TemporaryDirectory(prefix="cb") as folder:
        yield Path(folder)


@pytest.mark.bench
def test_a_tiny_run_measures_every_figure_and_writes_what_was_asked(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, picture = short_path / "figures.json", short_path / "bench.svg"
    names = ["round-trip", "steps", "drain", "history", "peers", "retention"]
    code = main(
        [*names, "--scale", "0.005", "--dir", str(short_path), "--json", str(figures), "--picture", str(picture)]
    )
    out, err = capsys.readouterr()
    assert err == ""
    assert code in (0, 1)  # a missed target is no fault of this test
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert all(tuple(one) == KEYS for one in found)
    assert [one["name"] for one in found if one["value"] is None] == []
    judged = {one["name"] for one in found if one["met"] is not None}
    assert len(judged) == 9
    assert all(name in out for name in (*names, "targets met"))
    assert picture.stat().st_size > 1000
    assert sorted(path.name for path in short_path.iterdir()) == ["bench.svg", "figures.json"]
