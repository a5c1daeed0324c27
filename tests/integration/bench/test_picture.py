"""The benchmarks' picture, drawn for real: loading the plotting library takes longer than a hundred unit tests."""

import html
from pathlib import Path

import pytest

from bench.figures import Curve, Result
from bench.picture import PANELS, draw

LINE = Curve("one", ((1.0, 2.0), (10.0, 3.0)))


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "out" / f"bench.{suffix}"
    assert draw({"a": Result((), curves={panel: [LINE] for panel in PANELS})}, "a machine", path)
    content = path.read_bytes()
    assert content.startswith({"svg": b"<?xml", "png": b"\x89PNG"}[suffix])
    if suffix == "svg":
        text = html.unescape(content.decode())
        assert [panel.title for panel in PANELS.values() if panel.title not in text] == []
