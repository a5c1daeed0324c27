"""Patterns match as Python's own do, and no text and no pattern keeps them busy."""

import random
import re

import pytest

from daemon.core import patterns
from daemon.core.patterns import MAX_TEXT, Pattern, PatternError

PATTERNS = (
    "a", "abc", "a|b", "(a|b)*c", "^a", "a$", "^$", "a*", "[a-c]+d", r"\bfoo\b", r"\Bo", r"(?i)^@?andy\b", "a{2,3}b",
    "(?:ab)+$", "[^a]b", r"\d+\s\w", "(a*)*b", "(a|)b", "a?b?c", "x{0,2}y", "[]a]", "[a-]", r"\.", "^(?:a|^b)c", "a{x", r"[\d.]+",
)  # fmt: skip


@pytest.mark.parametrize("text", PATTERNS)
def test_it_agrees_with_python(text: str) -> None:
    chance = random.Random(text)
    ours, theirs = Pattern(text), re.compile(text)
    for _ in range(200):
        said = "".join(chance.choice("abcdfo @Andyx1 .]-") for _ in range(chance.randrange(10)))
        assert ours.search(said) == bool(theirs.search(said)), said


@pytest.mark.parametrize(
    "text", ["", "(", ")", "[a", "*a", "a**", r"\q", "(?=a)", r"(a)\1", "a{51}", "a{3,2}", "x" * 201, "(" * 30, "((a{0,50}){0,50})"]
)  # fmt: skip
def test_what_it_cannot_do_is_refused(text: str) -> None:
    with pytest.raises(PatternError):
        Pattern(text)


@pytest.mark.parametrize("text", ["(a+)+$", "(a|aa)+$", "(.*)(.*)(.*)(.*)(.*)x", "((a{0,9}){0,9})b"])
def test_hostile_text_costs_a_bounded_number_of_steps(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backtracking would need 2**2000 steps for the first two. Counted, not timed."""
    steps = 0
    follow = Pattern._follow

    def counted(self: Pattern, state: int, character: str) -> int:
        nonlocal steps
        steps += 1
        return follow(self, state, character)

    monkeypatch.setattr(patterns.Pattern, "_follow", counted)
    assert not Pattern(text).search("a" * 100_000 + "!")
    assert steps <= MAX_TEXT + 1


def test_what_it_remembers_is_bounded() -> None:
    pattern = Pattern("a.{0,20}b")
    for start in range(0, 20_000, 1_000):
        pattern.search("".join(chr(0x100 + (start + at) % 30_000) for at in range(1_000)))
    assert len(pattern._remembered) <= 4_001
