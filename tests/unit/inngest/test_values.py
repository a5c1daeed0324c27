"""Inngest's values: every form that a column may hold is read, and a written time stands in its neighbour's form."""

import pytest

from daemon.inngest.values import (
    Status,
    code_like,
    instant,
    instant_text,
    run_forms,
    run_key,
    status_of_code,
    status_of_finish,
    status_of_span,
    ulid_bytes,
    ulid_ms,
)
from schema.ids import new_id

AT = 1_772_445_600_500  # 2026-03-02 10:00:00.5 UTC
KEY = new_id(AT)
FORMS = [
    "2026-03-02 10:00:00.5 +0000 UTC",
    "2026-03-02 10:00:00.5 +0000 UTC m=+12.345",
    "2026-03-02 12:00:00.5 +0200 CEST",
    "2026-03-02 05:30:00.5 -0430 -0430",
    "2026-03-02 10:00:00.5",
    "2026-03-02 10:00:00.500999",
    "2026-03-02T10:00:00.5Z",
    "2026-03-02T10:00:00.500123456Z",
    "2026-03-02T12:00:00.5+02:00",
    "2026-03-02 10:00:00.5+00:00",
]


@pytest.mark.parametrize("text", FORMS)
def test_every_text_form_is_the_same_instant(text: str) -> None:
    assert instant(text) == AT
    assert instant(text.encode()) == AT


@pytest.mark.parametrize("text", FORMS)
def test_a_written_time_has_its_neighbour_s_form_and_sorts_after_it(text: str) -> None:
    for later in (1000, 1250, 1500, 60_000, 86_400_000):  # within a second, texts do not always sort as times
        written = instant_text(AT + later, text)
        assert instant(written) == AT + later
        assert written > text.partition(" m=")[0]
        assert " m=" not in written


@pytest.mark.parametrize("number", [AT, AT * 1000, AT * 1_000_000, AT / 1000, str(AT)])
def test_numbers_are_told_by_their_size(number: float | str) -> None:
    assert instant(number) == AT


@pytest.mark.parametrize(
    "nothing", [None, 0, "", "soon", "2026-13-45 10:00:00", b"\xff", -5, True, 1e30, [], "0001-01-01"]
)
def test_what_is_no_instant_is_none(nothing: object) -> None:
    assert instant(nothing) is None


def test_a_time_without_a_readable_neighbour_is_written_as_go_does() -> None:
    assert instant_text(AT, None) == instant_text(AT, "soon") == "2026-03-02 10:00:00.5 +0000 UTC"


def test_a_run_s_id_is_one_whatever_the_column_holds() -> None:
    assert {run_key(form) for form in run_forms(KEY)} == {KEY}
    assert run_key(KEY.lower()) == KEY
    assert ulid_ms(KEY) == AT
    assert len(ulid_bytes(KEY)) == 16


@pytest.mark.parametrize("nothing", [None, 7, "", "short", "U" * 26, "8" + "0" * 25, b"\xff" * 5, b"x" * 26])
def test_what_is_no_ulid_is_none(nothing: object) -> None:
    assert run_key(nothing) is None


def test_both_numberings_are_read_and_kept() -> None:
    assert [status_of_code(code) for code in (200, 0)] == [Status.RUNNING] * 2
    assert [status_of_code(code) for code in (500, 3)] == [Status.CANCELLED] * 2
    assert [status_of_code(code) for code in (999, None, "x")] == [Status.UNKNOWN] * 3
    assert [code_like(Status.COMPLETED, old) for old in (200, 0)] == [300, 1]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (None, Status.RUNNING), ("", Status.RUNNING), ("Running", Status.RUNNING), ("Waiting", Status.RUNNING),
        ("Completed", Status.COMPLETED), ("Errored", Status.FAILED), ("TimedOut", Status.CANCELLED), ("500", Status.CANCELLED),
        ("3", Status.RUNNING), ("what", Status.RUNNING),
    ],
)  # fmt: skip
def test_a_span_s_status_reads_as_the_server_reads_it(text: object, status: Status) -> None:
    assert status_of_span(text) is status


def test_a_finish_s_status_may_be_the_history_s_type() -> None:
    assert status_of_finish("FunctionCancelled") is status_of_finish("Cancelled") is Status.CANCELLED
    assert status_of_finish("completed") is Status.COMPLETED
    assert status_of_finish(None) is status_of_finish("odd") is Status.UNKNOWN
