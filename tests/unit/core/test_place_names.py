"""Session names made from foreign names: valid, bounded, and different for different names."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.place_names import MAX_NAME_BYTES, chained_name, escape, name_fault, session_name
from schema.ids import MAX_FOLDER, check_session, session_folder

# Pairs that a person or a normalising file system takes for one.
LIKE = (
    ("a", "\uff41"), ("é", "e\u0301"), ("가", "\u1100\u1161"), ("K", "\u212a"), ("fi", "\ufb01"), ("a/b", "a%2Fb"),
    ("a:b", "a%3Ab"), (".", "%2E"), ("a", "a "), ("x" * 300, "x" * 301),
)  # fmt: skip


@pytest.mark.parametrize(("one", "other"), LIKE)
def test_names_that_look_alike_stay_apart(one: str, other: str) -> None:
    first, second = session_name("c", one), session_name("c", other)
    assert first != second
    assert unicodedata.normalize("NFKC", first) != unicodedata.normalize("NFKC", second)


def test_a_chain_of_agents_has_a_name_that_can_be_read() -> None:
    second = chained_name("agent", "a", "s")
    third = chained_name("agent", "b", second)
    assert (second, third) == ("agent:a:s", "agent:b:agent:a:s")
    assert chained_name("agent", "c", third) == "agent:c:agent:b:agent:a:s"
    assert chained_name("agent", "b", "agent:a b") == session_name("agent", "b", "agent:a b"), "a space is not kept"


@given(st.text(max_size=40), st.text(max_size=40))
def test_different_sessions_that_ask_get_different_answering_sessions(one: str, other: str) -> None:
    for begin in ("", "agent:", "agent:a:"):
        names = [chained_name("agent", "b", begin + text) for text in (one, other)]
        names.append(chained_name("agent", "b", one))
        assert all(check_session(name) == name and len(session_folder(name)) <= MAX_FOLDER for name in names)
        assert (names[0] == names[1]) == (one == other)
        assert (names[0] == names[2]) == (begin == "")


@given(st.lists(st.text(max_size=40), min_size=1, max_size=3), st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_any_names_make_valid_sessions_and_different_ones_differ(one: list[str], other: list[str]) -> None:
    names = [session_name("chan", *parts) for parts in (one, other)]
    for name in names:
        assert check_session(name) == name
        assert len(session_folder(name)) <= MAX_FOLDER
    assert (names[0] == names[1]) == (one == other)


@pytest.mark.parametrize(
    "text",
    ["", " a", "a\n", "a\u200bb", "a\u202eb", "\ud800", "\ufeffa", "a\u2028", "x" * (MAX_NAME_BYTES + 1), "é" * 300],
)
def test_hostile_names_are_refused(text: str) -> None:
    assert name_fault(text) is not None


@pytest.mark.parametrize("text", ["-100123", "!room:server.org", "acme/shop", "Küche", "会議室", "../../etc"])
def test_ordinary_names_pass(text: str) -> None:
    assert name_fault(text) is None
    assert "/" not in escape(text)
