"""tests/README.md names a test for each requirement: each file is there, and has the names given beside it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")


def test_every_line_of_the_table_names_tests_that_are_there() -> None:
    rows = re.findall(
        r"^\| (?!requirement|---)(.+?) \| (.+) \|$", TEXT.split("## Deploys, by requirement")[1], re.MULTILINE
    )
    assert len(rows) >= 16
    for requirement, tests in rows:
        named = re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)`(?: \(([^)]*)\))?", tests)
        assert named, requirement
        for name, beside in named:
            found = [ROOT / name] if "/" in name else list((ROOT / "tests").rglob(name))
            assert len(found) == 1, f"{requirement}: {name} is {len(found)} files"
            source = found[0].read_text(encoding="utf-8")
            words = " ".join(re.findall(r"`([^`]+)`", beside)).split()
            assert [one for one in words if one not in source] == [], (requirement, name)
