"""Whether others used the machine, from the kernel's counters."""

import pytest

from bench.neighbours import busy_share, counters, disturbance, share

STAT = "cpu  100 1 20 800 50 3 4 22 7 8\ncpu0 50 0 10 400 25 1 2 11 3 4\nintr 12345\n"


def test_waiting_for_a_disk_is_idle_and_a_guest_is_not_counted_twice() -> None:
    assert counters(STAT) == (150, 1000)


def test_the_share_is_of_what_passed() -> None:
    assert share((100, 1000), (150, 1200)) == 0.25
    assert share((100, 1000), (100, 1000)) == 0.0


def test_the_machine_can_be_asked() -> None:
    assert 0.0 <= busy_share(0.0) <= 1.0


@pytest.mark.parametrize(
    ("shares", "sign"), [((0.01, 0.15), None), ((0.01, 0.4), "others used 40%"), ((0.9, 0.0), "90%")]
)
def test_one_busy_look_is_enough(shares: tuple[float, float], sign: str | None) -> None:
    found = disturbance(shares)
    assert (found is None) == (sign is None)
    assert sign is None or sign in (found or "")
