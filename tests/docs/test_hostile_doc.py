"""docs/hostile.md names a test for each of its claims: each of them is there, and the settings that it names are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "hostile.md").read_text(encoding="utf-8")


def test_every_test_it_names_is_there() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", sources))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 20
    assert named - there == set()
    files = set(re.findall(r"`(tests/[\w/.]+)`", TEXT))
    assert {name for name in files if not (ROOT / name).exists()} == set()


def test_every_setting_it_names_is_one() -> None:
    keys = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:limits|delivery|sweep)\.\w+)`", TEXT))
    assert named
    assert {name for name in named if f"`{name}`" not in keys} == set()
