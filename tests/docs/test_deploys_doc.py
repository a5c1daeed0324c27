"""docs/deploys.md names tests for each requirement: each is there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "deploys.md").read_text(encoding="utf-8")


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_line_of_the_table_names_tests_that_are_there() -> None:
    table = TEXT.split("## How it is tested")[1]
    rows = re.findall(r"^\| (?!requirement|---|\*\*)(.+?) \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) >= 22
    for requirement, tests in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
        assert len(named) == tests.count("`") // 2 > 0, requirement
        for file, name in named:
            assert name in functions(TESTS / file), (requirement, file, name)
