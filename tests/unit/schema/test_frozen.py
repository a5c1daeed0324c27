"""What a class made `frozen` is at run time; the type checker holds the rest."""

from dataclasses import replace

import pytest

from schema.frozen import frozen


@frozen
class Point:
    """A value with a default."""

    x: int
    y: int = 0

    @property
    def sum(self) -> int:
        """Return what both make together."""
        return self.x + self.y


@frozen
class Named(Point):
    """A value that inherits fields."""

    name: str = ""


def test_values_compare_and_hash_by_their_fields() -> None:
    assert {Point(1), Point(1, 0), replace(Point(1, 5), y=0)} == {Point(1)}
    assert Point(1) != Point(1, 2)
    assert Named(1, 2, "a") == Named(1, 2, name="a") != Named(1, 2)
    assert Named(1, 2).sum == 3
    assert Point(1) != Named(1)


def test_a_value_has_no_other_attributes() -> None:
    for value in (Point(1), Named(1)):
        assert not hasattr(value, "__dict__")
        with pytest.raises(AttributeError):
            setattr(value, "z", 1)  # noqa: B010 - the type checker refuses the plain form
