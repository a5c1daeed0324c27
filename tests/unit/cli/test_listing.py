"""Tables in the width that there is: no line is wider, and no id is broken."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from daemon.cli.listing import Listing, column_widths

SESSION = "an-agent-with-a-long-name/telegram:-1001234567890123:long-thread"
ID = "01M8FHSNAY52PJVXWFNW2C10N7"
RUN = f"{ID}.{ID}"
WHEN = "2026-11-21 02:20:32 (3 min ago)"
WHY = "its container ended with code 1 three times in a row; the next one starts at 12:30, in 5 min"
HOOK = "webhook:https://example.org/hooks/for/answers"
LISTS = {
    "sessions": (
        ("session", "state", "unfinished", "oldest", "undelivered", "dead letters", "why"),
        (SESSION, "backing_off", 3, "12 min", 4, 12, WHY),
    ),
    "dead": (
        ("session", "kind", "id", "when", "to or from", "code", "reason"),
        (SESSION, "in", ID, WHEN, HOOK, "TRIES_EXHAUSTED", WHY),
    ),
    "runs": (("run", "session", "status", "last change", "worked", "text"), (RUN, SESSION, "working", WHEN, "12 s", WHY)),
    "delivery": (
        ("session", "id", "to", "state", "attempts", "next", "behind", "last error"),
        (SESSION, ID, HOOK, "retrying", 12, WHEN, 4, WHY),
    ),
    "status": (("session", "why"), (SESSION, WHY)),
    "messages": (("id", "status", "tries", "accepted", "text", "last event"), (ID, "pending", 1, WHEN, WHY, "claimed")),
}  # fmt: skip


def lines_of(shown: RenderableType, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, highlight=False, emoji=False).print(shown)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("width", [80, 120])
def test_a_list_fits_and_breaks_no_word(name: str, width: int) -> None:
    columns, row = LISTS[name]
    lines = lines_of(Listing("2 found", columns, [row, row]), width)
    assert max(map(cell_len, lines)) <= width
    for word in " ".join(map(str, row)).split():
        assert any(word in line for line in lines), word


def test_short_rows_are_a_table_and_long_ones_are_records() -> None:
    columns, row = LISTS["sessions"]
    short = ("echo/s", "idle", 0, "-", 0, 0, "")
    assert any("│ echo/s" in line for line in lines_of(Listing("1 session", columns, [short])))
    records = lines_of(Listing("1 session", columns, [row]))
    assert records[0] == "1 session"
    assert "  state         backing_off" in records
    assert f"  session       {SESSION}" in records
    longer = lines_of(Listing("1 session", columns, [(f"{SESSION}-more", *row[1:])]))
    assert longer[2:4] == ["  session", f"    {SESSION}-more"], "a word too long for its place has its own line"
    assert not any("│" in line for line in records)


@pytest.mark.parametrize("width", [20, 80])
def test_what_is_wider_than_the_screen_is_folded(width: int) -> None:
    long = "\u6f22" * 90 + "\x1b[2J" + "x" * 128
    lines = lines_of(Listing("t" * 90, ("session", "why"), [(long, None)]), width)
    assert max(map(cell_len, lines)) <= width
    assert "\x1b" not in "".join(lines)


def test_prose_is_not_squeezed_into_a_narrow_column() -> None:
    assert column_widths(("id", "why"), [[ID, "a b c d e f g h i j k l m n o p"]], 50) is None
    assert column_widths(("id", "why"), [[ID, "a b c d e f g h i j k l m n o p"]], 57) == [26, 24]


def test_room_that_is_left_goes_where_it_is_needed() -> None:
    assert column_widths(("id", "why"), [["7", "word " * 20]], 60) == [2, 51]
    assert column_widths(("id", "why"), [["7", "a b"]], 60) == [2, 3]
    assert column_widths(("id", "why"), [], 60) == [2, 3]


@pytest.mark.parametrize("width", [40, 80])
def test_an_empty_list_is_its_title(width: int) -> None:
    assert lines_of(Listing("0 users", ("user", "roles", "identities", "state"), []), width) == ["0 users"]
