"""A figure, its floor and its target, as people and programs are told of them."""

import json
from pathlib import Path

import pytest

from bench.figures import KEYS, Figure, Of, Result, Target, missed
from bench.report import print_summary, write_json, write_markdown

THREE_TIMES = Target(Of.RATIO, 3.0)
EIGHT_THOUSAND = Target(Of.VALUE, 8000, at_most=False)


@pytest.mark.parametrize(
    ("value", "floor", "target", "met"),
    [
        (9.0, 3.0, THREE_TIMES, True),
        (9.1, 3.0, THREE_TIMES, False),
        (9.0, None, THREE_TIMES, None),
        (9.0, 0.0, THREE_TIMES, None),
        (8000.0, None, EIGHT_THOUSAND, True),
        (7999.0, None, EIGHT_THOUSAND, False),
        (None, 3.0, THREE_TIMES, None),
        (1.0, 1.0, None, None),
    ],
)
def test_a_target_is_met_missed_or_cannot_be_told(
    value: float | None, floor: float | None, target: Target | None, met: bool | None
) -> None:
    assert Figure("x", value, "ms", floor, target).met is met


def test_targets_read_as_in_the_design() -> None:
    assert THREE_TIMES.text("ms") == "<= 3x floor"
    assert EIGHT_THOUSAND.text("rows/s") == ">= 8,000 rows/s"


def test_only_what_was_measured_can_be_missed() -> None:
    figures = [
        Figure("met", 9.0, "ms", 3.0, THREE_TIMES),
        Figure("missed", 10.0, "ms", 3.0, THREE_TIMES),
        Figure("skipped", None, "ms", 3.0, THREE_TIMES, note="no Docker"),
        Figure("no target", 10.0, "ms", 3.0),
    ]
    assert [figure.name for figure in missed(figures)] == ["missed"]


def test_the_list_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "out" / "figures.json"
    write_json(path, [Figure("round trip", 9.0, "ms", 3.0, THREE_TIMES), Figure("skipped", None, "s", note="why")])
    first, second = json.loads(path.read_text(encoding="utf-8"))
    assert first == {
        "name": "round trip", "value": 9.0, "unit": "ms", "floor": 3.0, "ratio": 3.0, "target": "<= 3x floor", "met": True,
    }  # fmt: skip
    assert tuple(second) == KEYS
    assert [second[key] for key in KEYS[1:]] == [None, "s", None, None, None, None]


def test_the_table_for_a_page(tmp_path: Path) -> None:
    path = tmp_path / "bench.md"
    figures = (
        Figure("round trip", 9.0, "ms", 3.0, THREE_TIMES, "half 8 | 10"),
        Figure("cold", None, "s", note="no Docker"),
    )
    write_markdown(path, "a machine", {"warm": Result(figures, noisy="the floor moved")})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# A run of `make bench`\n\na machine.\n\n**warm** (noisy: the floor moved)\n")
    assert "| round trip | 9 ms | 3 | 3.00x | <= 3x floor | yes | half 8 / 10 |\n" in text
    assert "| cold | no Docker |" in text


def test_the_summary_names_what_was_missed_skipped_and_noisy(capsys: pytest.CaptureFixture[str]) -> None:
    figures = (
        Figure("met", 9.0, "ms", 3.0, THREE_TIMES),
        Figure("slow", 10.0, "ms", 3.0, THREE_TIMES),
        Figure("cold", None, "s", target=THREE_TIMES, note="no Docker"),
    )
    print_summary({"warm": Result(figures, noisy="the floor moved")})
    out = capsys.readouterr().out
    assert "1 of 2 targets met" in out
    assert "missed: slow: 10 ms, target <= 3x floor" in out
    assert "not measured: cold" in out
    assert "noisy: warm: the floor moved" in out
