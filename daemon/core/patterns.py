"""Regular expressions for routes, whose matching time is linear in the text's length, whatever the pattern and the text.

Python's engine backtracks, so one hostile message could keep it busy for hours. This one simulates all paths at once
(Thompson's construction) and caches each step, so no pattern and no text makes it slow. It supports literals, `.`,
classes (`[a-z]`, `\\d \\w \\s` and their opposites), groups, `|`, `* + ? {m,n}`, `^ $ \\b \\B`, and `(?i)` at the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from schema.frozen import frozen

MAX_PATTERN: Final = 200  # characters of a pattern
MAX_TEXT: Final = 2_000  # characters of a text that are searched
_MAX_STEPS: Final = 300  # instructions of a compiled pattern
_MAX_REPEAT: Final = 50
_MAX_DEPTH: Final = 20
_MAX_REMEMBERED: Final = 4_000
_END: Final = "\0end"
_ESCAPES: Final[Mapping[str, str]] = {"n": "\n", "t": "\t", "r": "\r"}


class PatternError(ValueError):
    """The pattern is malformed, too large, or uses an unsupported feature."""


@frozen
class _Set:
    """The characters that one step accepts: single ones, ranges and classes, or all others."""

    singles: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, str], ...] = ()
    classes: str = ""
    negated: bool = False

    def takes(self, character: str, *, fold: bool) -> bool:
        forms = (character, character.lower(), character.upper()) if fold else (character,)
        return self.negated != any(self._has(one) for one in forms)

    def _has(self, one: str) -> bool:
        return (
            one in self.singles
            or any(low <= one <= high for low, high in self.ranges)
            or any(_in_class(name, one) for name in self.classes)
        )


def _in_class(name: str, one: str) -> bool:
    found = {"d": one.isdecimal, "w": lambda: _is_word(one), "s": one.isspace}[name.lower()]()
    return found != name.isupper()


def _is_word(one: str) -> bool:
    return one.isalnum() or one == "_"


# The nodes of a parsed pattern: a character set, a sequence, a choice, a repetition, an assertion.
@frozen
class _Sequence:
    parts: tuple[_Node, ...]


@frozen
class _Choice:
    parts: tuple[_Node, ...]


@frozen
class _Repeat:
    part: _Node
    least: int
    most: int | None


@frozen
class _Assertion:
    kind: str  # ^ $ b B


_Node = _Set | _Sequence | _Choice | _Repeat | _Assertion


@frozen
class _Fork:
    """An instruction: continue at each of these."""

    to: tuple[int, ...]


_Step = _Set | _Assertion | _Fork


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> _Node:
        found = self._choice(0)
        if self._at < len(self._text):
            raise PatternError("has a `)` without its `(`")
        return found

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        found = self._peek()
        if not found:
            raise PatternError("ends too early")
        self._at += 1
        return found

    def _choice(self, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise PatternError("is nested too deep")
        parts = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom(depth)))
        return _Sequence(tuple(parts))

    def _atom(self, depth: int) -> _Node:
        one = self._next()
        match one:
            case "(":
                if self._peek() == "?":
                    if self._text[self._at : self._at + 2] != "?:":
                        raise PatternError("knows no `(?...)` but `(?:...)`, and `(?i)` at its beginning")
                    self._at += 2
                inner = self._choice(depth + 1)
                if self._peek() != ")":
                    raise PatternError("has a `(` without its `)`")
                self._at += 1
                return inner
            case "[":
                return self._class()
            case ".":
                return _Set(frozenset("\n"), negated=True)
            case "^" | "$":
                return _Assertion(one)
            case "*" | "+" | "?":
                raise PatternError(f"has a `{one}` with nothing to repeat")
            case "\\":
                return self._escape()
            case _:
                return _Set(frozenset(one))

    def _escape(self) -> _Node:
        one = self._next()
        if one in "bB":
            return _Assertion(one)
        if one in "dDwWsS":
            return _Set(classes=one)
        return _Set(frozenset(self._literal(one)))

    @staticmethod
    def _literal(one: str) -> str:
        if one in _ESCAPES:
            return _ESCAPES[one]
        if one.isalnum():
            raise PatternError(f"knows no `\\{one}`")
        return one

    def _class(self) -> _Set:
        negated = self._peek() == "^"
        self._at += int(negated)
        singles: set[str] = set()
        ranges: list[tuple[str, str]] = []
        classes = ""
        first = True
        while first or self._peek() != "]":
            first = False
            one = self._next()
            if one == "\\":
                one = self._next()
                if one in "dDwWsS":
                    classes += one
                    continue
                one = self._literal(one)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._next()
                last = self._literal(self._next()) if last == "\\" else last
                if last < one:
                    raise PatternError(f"has a range that is backwards: {one}-{last}")
                ranges.append((one, last))
            else:
                singles.add(one)
        self._at += 1
        return _Set(frozenset(singles), tuple(ranges), classes, negated)

    def _repeated(self, atom: _Node) -> _Node:
        one = self._peek()
        if one and one in "*+?":
            self._at += 1
            atom = _Repeat(atom, int(one == "+"), 1 if one == "?" else None)
        elif one == "{" and (counts := self._counts()) is not None:
            atom = _Repeat(atom, *counts)
        else:
            return atom
        if self._peek() == "?":  # lazy or greedy: either matches the same texts
            self._at += 1
        if self._peek() and self._peek() in "*+?":
            raise PatternError("repeats a repetition; put a group around the inner one")
        return atom

    def _counts(self) -> tuple[int, int | None] | None:
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end if end >= 0 else self._at].partition(",")
        if not low.isdecimal() or (high and not high.isdecimal()):
            return None  # a literal brace
        self._at = end + 1
        least = int(low)
        most = int(high) if high else None if comma else least
        if max(least, most or 0) > _MAX_REPEAT or (most is not None and most < least):
            raise PatternError(f"repeats more than {_MAX_REPEAT} times, or from more to less")
        return least, most


class Pattern:
    """A compiled pattern. Raise PatternError for one that cannot be used."""

    __slots__ = ("_fold", "_remembered", "_starts", "_states", "_steps", "text")

    def __init__(self, text: str) -> None:
        if not 0 < len(text) <= MAX_PATTERN:
            raise PatternError(f"must have 1 to {MAX_PATTERN} characters")
        self.text = text
        self._fold = text.startswith("(?i)")
        self._steps: list[_Step] = []
        self._emit(_Parser(text.removeprefix("(?i)")).parse())
        self._remembered: dict[tuple[int, str], int] = {}
        self._states: list[tuple[frozenset[int], str]] = []
        self._starts: dict[tuple[frozenset[int], str], int] = {}

    def search(self, text: str) -> bool:
        """Return whether the pattern matches anywhere in the first MAX_TEXT characters."""
        state = self._state(frozenset({0}), "")
        for character in text[:MAX_TEXT]:
            following = self._remembered.get((state, character))
            if following is None:
                following = self._follow(state, character)
            if following < 0:
                return True
            state = following
        after = text[MAX_TEXT] if len(text) > MAX_TEXT else _END  # `$` does not match where the text is cut off
        return self._follow(state, after) < 0

    # --- compiling: a match ends after the last instruction

    def _emit(self, node: _Node) -> None:
        match node:
            case _Set() | _Assertion():
                self._add(node)
            case _Sequence():
                for part in node.parts:
                    self._emit(part)
            case _Choice():
                self._emit_choice(node.parts)
            case _Repeat():
                self._emit_repeat(node)

    def _add(self, step: _Step) -> int:
        if len(self._steps) >= _MAX_STEPS:
            raise PatternError("is too large once its repetitions are written out")
        self._steps.append(step)
        return len(self._steps) - 1

    def _emit_choice(self, parts: Iterable[_Node]) -> None:
        fork = self._add(_Fork(()))
        begins: list[int] = []
        ends: list[int] = []
        for part in parts:
            begins.append(len(self._steps))
            self._emit(part)
            ends.append(self._add(_Fork(())))
        self._steps[fork] = _Fork(tuple(begins))
        for end in ends:
            self._steps[end] = _Fork((len(self._steps),))

    def _emit_repeat(self, node: _Repeat) -> None:
        for _ in range(node.least):
            self._emit(node.part)
        if node.most is None:
            fork = self._add(_Fork(()))
            self._emit(node.part)
            self._add(_Fork((fork,)))
            self._steps[fork] = _Fork((fork + 1, len(self._steps)))
            return
        forks: list[int] = []
        for _ in range(node.most - node.least):
            forks.append(self._add(_Fork(())))
            self._emit(node.part)
        for fork in forks:
            self._steps[fork] = _Fork((fork + 1, len(self._steps)))

    # --- matching

    def _state(self, at: frozenset[int], before: str) -> int:
        key = (at, before)
        found = self._starts.get(key)
        if found is None:
            found = self._starts[key] = len(self._states)
            self._states.append(key)
        return found

    def _follow(self, state: int, character: str) -> int:
        """Return the state after a character, or -1 for a match before it. `_END` means the end of the text."""
        at, before = self._states[state]
        live = self._reached(at, before, character)
        if len(self._steps) in live:
            following = -1
        elif character == _END:
            return state
        else:
            onward = {0}  # a match may start anywhere
            for index in live:
                step = self._steps[index]
                if isinstance(step, _Set) and step.takes(character, fold=self._fold):
                    onward.add(index + 1)
            kind = "w" if _is_word(character) else "n"
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered, self._states, self._starts = {}, [], {}
                return self._state(frozenset(onward), kind)
            following = self._state(frozenset(onward), kind)
        self._remembered[state, character] = following
        return following

    def _reached(self, at: Iterable[int], before: str, character: str) -> set[int]:
        """Return every instruction that can be reached without consuming a character."""
        reached: set[int] = set()
        left = list(at)
        while left:
            index = left.pop()
            if index in reached:
                continue
            reached.add(index)
            step = self._steps[index] if index < len(self._steps) else None
            if isinstance(step, _Fork):
                left.extend(step.to)
            elif isinstance(step, _Assertion) and _holds(step.kind, before, character):
                left.append(index + 1)
        return reached


def _holds(kind: str, before: str, character: str) -> bool:
    if kind == "^":
        return before == ""
    if kind == "$":
        return character == _END
    edge = (before == "w") != (character != _END and _is_word(character))
    return edge == (kind == "b")
