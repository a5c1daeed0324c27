"""The trace context as the standard has it: what is none is none, and what is one is carried on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.telemetry.context import TraceContext, new_context, parse
from daemon.telemetry.spans import context_of_row

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, sampled=True)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, sampled=False)),
        (f" 00-{TRACE}-{SPAN}-03 ", TraceContext(TRACE, SPAN, sampled=True)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-is", TraceContext(TRACE, SPAN, sampled=True)),
        (f"cc-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, sampled=True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"cc-{TRACE}-{SPAN}-01.what", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        ("00-" + "\u0660" * 32 + f"-{SPAN}-01", None),
        (f"cc-{TRACE}-{SPAN}-01-" + "x" * 600, None),
        ("", None),
        (None, None),
    ],
)
def test_a_header_is_read_as_the_standard_says(header: str | None, expected: TraceContext | None) -> None:
    assert parse(header) == expected


@given(st.text())
def test_nothing_is_raised_for_what_is_no_context(header: str) -> None:
    found = parse(header)
    assert found is None or parse(found.header) == found


@given(st.floats(0, 1))
def test_a_new_one_can_be_read_again_and_is_nobody_else_s(ratio: float) -> None:
    first, second = new_context(None, ratio), new_context(None, ratio)
    assert parse(first.header) == first
    assert (first.trace_id, first.span_id) != (second.trace_id, second.span_id)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_child_is_in_its_parent_s_trace_and_keeps_the_decision(*, sampled: bool) -> None:
    parent = TraceContext(TRACE, SPAN, sampled)
    child = new_context(parent, 0.0 if sampled else 1.0)
    assert (child.trace_id, child.sampled) == (TRACE, sampled)
    assert child.span_id != SPAN


def test_the_ratio_is_kept() -> None:
    assert not any(new_context(None, 0.0).sampled for _ in range(100))
    assert all(new_context(None, 1.0).sampled for _ in range(100))
    assert 100 < sum(new_context(None, 0.5).sampled for _ in range(400)) < 300


def test_a_row_without_one_has_always_the_same() -> None:
    one = context_of_row("a", "s", "m1", 1.0)
    assert parse(one.header) == one == context_of_row("a", "s", "m1", 1.0)
    others = {context_of_row(*names, 1.0).trace_id for names in (("a", "s", "m2"), ("a", "sm", "1"), ("as", "m", "1"))}
    assert len(others | {one.trace_id}) == 4
    assert context_of_row("a", "s", "\ud800", 0.0).sampled is False
