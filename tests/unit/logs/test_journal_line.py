"""A log event as a line of the journal, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.logs.journal_line import journal_line, read_entry
from daemon.logs.render import ordered

STAMP = "2026-11-28T10:00:00.000Z"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["true", "null", "12", "-1.5e3", "NaN", "Infinity", "", "a b", "x=y", '"', "{", "[1]", "a\nb", "\u2028", "\u202e"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda key: key not in ("timestamp", "level", "event", "env", "environ")
)


def entry(line: bytes, **more: object) -> dict[str, object]:
    """As journald keeps a line: the priority apart from the text."""
    assert line.startswith(b"<")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1, "the journal would make two entries of it"
    micros = "1795860000000000"
    return {"MESSAGE": line[3:-1].decode(), "PRIORITY": chr(line[1]), "__REALTIME_TIMESTAMP": micros, **more}


@settings(deadline=None)
@given(fields=st.dictionaries(KEYS, VALUES, max_size=5), level=st.sampled_from(["debug", "info", "warning", "error"]))
def test_an_event_reads_back_as_it_was(fields: dict[str, Any], level: str) -> None:
    event = ordered({"timestamp": STAMP, "level": level, "event": "message_accepted", **fields})
    found = read_entry(entry(journal_line(event)))
    assert found == {**event, "timestamp": "2026-11-28T10:00:00.000Z"}


@pytest.mark.parametrize(
    "text", ["Fatal Python error: Aborted", "Started clawbus.service", "a_word and more", "", "x =1"]
)
def test_what_is_no_event_keeps_its_text(text: str) -> None:
    found = read_entry({"MESSAGE": text, "PRIORITY": "6"})
    assert found is not None
    assert found["event"] == text


def test_a_line_of_json_is_the_event_that_it_holds() -> None:
    event = {"timestamp": STAMP, "level": "error", "event": "bad", "n": 1}
    assert read_entry({"MESSAGE": json.dumps(event), "PRIORITY": "3"}) == event


def test_a_message_that_is_not_utf_8_comes_as_bytes() -> None:
    found = read_entry({"MESSAGE": [104, 105, 255], "PRIORITY": "6"})
    assert found is not None
    assert found["event"] == "hi\ufffd"
    assert read_entry({"PRIORITY": "6"}) is None
