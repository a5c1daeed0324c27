"""A figure beside its floor and its target, a run's list of them, and the shape in which both are told.

Pure. A target is met or it is not: a figure without a measurement never counts as met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

KEYS: Final = ("name", "value", "unit", "floor", "ratio", "target", "met")


class Of(StrEnum):
    """What a target speaks of: the figure itself, or the figure divided by its floor."""

    VALUE = "value"
    RATIO = "ratio"


@dataclass(frozen=True, slots=True)
class Target:
    """`at_most` or at least `limit`."""

    of: Of
    limit: float
    at_most: bool = True

    def met(self, value: float, floor: float | None) -> bool | None:
        """None when the target speaks of a floor that was not measured."""
        measured = value if self.of is Of.VALUE else ratio(value, floor)
        if measured is None:
            return None
        return measured <= self.limit if self.at_most else measured >= self.limit

    def text(self, unit: str) -> str:
        """As people read it."""
        sign = "<=" if self.at_most else ">="
        return f"{sign} {self.limit:g}x floor" if self.of is Of.RATIO else f"{sign} {self.limit:,g} {unit}".rstrip()


def ratio(value: float | None, floor: float | None) -> float | None:
    """value / floor, where there is a floor above 0."""
    return value / floor if value is not None and floor else None


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `value` None: not measured, and `note` says why. `spread` is for people."""

    name: str
    value: float | None
    unit: str
    floor: float | None = None
    target: Target | None = None
    spread: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Figure over floor."""
        return ratio(self.value, self.floor)

    @property
    def met(self) -> bool | None:
        """None without a target, a measurement or the floor that the target needs."""
        if self.target is None or self.value is None:
            return None
        return self.target.met(self.value, self.floor)

    def as_json(self) -> dict[str, object]:
        """Exactly KEYS."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "floor": self.floor,
            "ratio": self.ratio,
            "target": self.target.text(self.unit) if self.target is not None else None,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of the picture: points of (x, y)."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found. `curves` by the picture's panel; `notes` are for people; `noisy` says why, if it was."""

    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict[str, Sequence[Curve]])
    noisy: str | None = None


def missed(figures: Sequence[Figure]) -> list[Figure]:
    """Those that have a target and did not meet it."""
    return [figure for figure in figures if figure.met is False]
