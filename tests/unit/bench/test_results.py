"""What benchmarks make of their measurements: sums of steps, quarters of a memory curve, panels of the picture."""

from pathlib import Path

from bench.busy_sessions import quarters
from bench.figures import Curve, Figure, Result
from bench.picture import collected, draw
from bench.steps import BEGIN, STEPS, means

LINE = Curve("one", ((1.0, 2.0), (10.0, 3.0)))


def test_the_steps_add_up_to_the_whole() -> None:
    names = [BEGIN, *(step.until for step in STEPS)]
    lives = [
        {name: float(place * place) for place, name in enumerate(names)},
        {name: float(3 * place * place) for place, name in enumerate(names)},
    ]
    found = means(lives)
    assert found[0] == 2.0
    assert found[1] == 6.0
    assert sum(found) == 2.0 * len(STEPS) ** 2


def test_memory_is_compared_when_it_is_warm() -> None:
    """The first quarter, when every agent is new, does not count."""
    points = [(float(second), mb) for second, mb in enumerate([1.0, 2.0, 50.0, 51.0, 60.0, 61.0, 70.0, 72.0])]
    assert quarters(points) == (50.5, 71.0)
    assert quarters([(0.0, 7.0)]) == (7.0, 7.0)


def result(**curves: list[Curve]) -> Result:
    return Result((Figure("x", 1.0, "ms"),), curves=curves)


def test_curves_of_several_benchmarks_share_a_panel() -> None:
    found = collected({"a": result(latency=[LINE]), "b": result(latency=[LINE, LINE], memory=[LINE]), "c": result()})
    assert {panel: len(curves) for panel, curves in found.items()} == {"latency": 3, "memory": 1}


def test_nothing_to_draw_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.svg"
    assert not draw({"a": result()}, "a machine", path)
    assert not path.exists()
