"""Ids are time-ordered and unguessable; a name that comes from outside never becomes a path unchecked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.errors import InvalidNameError
from schema.ids import (
    MessageLife,
    check_message_id,
    check_name,
    check_session,
    is_message_id,
    new_id,
    row_id,
    session_folder,
    session_of_folder,
)

TIMES = st.integers(min_value=0, max_value=2**48 - 1)


def test_an_id_is_a_ulid() -> None:
    # The zero and the maximum of github.com/ulid/spec.
    assert new_id(0, bytes(10)) == "0" * 26
    assert new_id(2**48 - 1, b"\xff" * 10) == "7" + "Z" * 25


@given(TIMES, TIMES, st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_ids_sort_by_time_whatever_the_random_part(one: int, other: int, left: bytes, right: bytes) -> None:
    if one != other:
        assert (new_id(one, left) < new_id(other, right)) == (one < other)
    else:
        assert (new_id(one, left) < new_id(other, right)) == (left < right)


def test_ids_of_one_instant_differ() -> None:
    assert len({new_id(1) for _ in range(1000)}) == 1000


@given(TIMES)
def test_an_id_is_a_message_id_and_a_name(now: int) -> None:
    made = new_id(now)
    assert check_message_id(made) == check_name("session", made) == made


BAD_EVERYWHERE = [
    "", ".", "..", "/", "a/b", "../a", "a/../b", "/etc/passwd", "a\\b", "a\0b", "a\nb", "a\n", "a b", " a", "-rf", "_a",
    ".hidden", "~", "~root", "a;b", "a$b", "a*b", "a%2fb", "ä", "a\u2044b", "a\uff0fb", "\u202ea", "a\ud800", "\uff11",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_EVERYWHERE, ids=repr)
def test_a_name_that_could_be_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError) as refused:
        check_name("session", name)
    assert refused.value.hint
    with pytest.raises(InvalidNameError):
        check_message_id(name)
    assert not is_message_id(name)


@pytest.mark.parametrize("name", ["a", "A1", "0", "a.b-c_d", "a..b", "a" * 64])
def test_a_plain_name_is_kept(name: str) -> None:
    assert check_name("agent", name) == name


@pytest.mark.parametrize("name", ["a" * 65, "a:b", "a@b", "a+b", "a=b"])
def test_a_name_is_stricter_than_a_message_id(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_name("agent", name)
    assert check_message_id(name) == name


@pytest.mark.parametrize("message_id", ["a..b", "a..", "a" * 201])
def test_a_message_id_is_refused_where_it_could_climb(message_id: str) -> None:
    with pytest.raises(InvalidNameError):
        check_message_id(message_id)
    assert not is_message_id(message_id)


@pytest.mark.parametrize("value", [None, 1, b"a", ["a"]])
def test_what_is_no_text_is_no_message_id(value: object) -> None:
    assert not is_message_id(value)


@given(st.text(max_size=70))
def test_whatever_passes_is_one_path_component(text: str) -> None:
    for check in (lambda name: check_name("x", name), check_message_id):
        try:
            accepted = check(text)
        except InvalidNameError:
            continue
        assert PurePosixPath("/base", accepted).parent == PurePosixPath("/base")
        assert accepted not in (".", "..")
        assert accepted.isascii()
        assert accepted.isprintable()


# --- sessions are called what chats are called

CHATS = {
    "main": "main",
    "a..b": "a..b",
    "-1001234567890": "%2D1001234567890",
    "+49 171 1234567": "%2B49%20171%201234567",
    "!room:server.org": "%21room%3Aserver.org",
    "owner/repo#12": "owner%2Frepo%2312",
    "19:meeting_MjdhNjM4YzUtYzEx@thread.v2": "19%3Ameeting_MjdhNjM4YzUtYzEx%40thread.v2",
    "a@b.example": "a%40b.example",
    ".hidden": "%2Ehidden",
    "_a": "%5Fa",
    "100%": "100%25",
    "%2D1": "%252D1",
    "K\u00fcche": "K%C3%BCche",
    "\u5bb6\u65cf": "%E5%AE%B6%E6%97%8F",
    "*": "%2A",
    "~root": "~root".replace("~", "%7E"),
    "a" * 200: "a" * 200,
}


@pytest.mark.parametrize(("name", "folder"), CHATS.items(), ids=repr)
def test_a_session_s_name_becomes_a_folder_and_comes_back(name: str, folder: str) -> None:
    assert check_session(name) == name
    assert session_folder(name) == folder
    assert session_of_folder(folder) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/", "a/", "/a", "a//b", "../a", "a/../b", "a/./b", "a\0b", "a\nb", "a\n", " a", "a ", "a\tb", "a\x85b",
     "\u202ea", "a\u200bb", "a\u2028b", "a\ud800", "a" * 241, "\u5bb6" * 27],
    ids=repr,
)  # fmt: skip
def test_what_no_chat_is_called_is_no_session(name: str) -> None:
    with pytest.raises(InvalidNameError) as refused:
        check_session(name)
    assert refused.value.hint


@given(st.text(max_size=60))
def test_no_name_leaves_its_folder_and_no_two_share_one(name: str) -> None:
    try:
        check_session(name)
    except InvalidNameError:
        return
    folder = session_folder(name)
    assert session_of_folder(folder) == name
    assert folder.isascii()
    assert len(folder) <= 240
    assert not folder.startswith((".", "-"))
    assert PurePosixPath("/sessions", "agent", folder).parts == ("/", "sessions", "agent", folder)


@given(st.text(alphabet="ab%2DEF./-_\u00e9", max_size=12))
def test_a_folder_that_no_session_made_is_nobody_s(folder: str) -> None:
    name = session_of_folder(folder)
    assert name is None or session_folder(name) == folder


def test_a_row_of_a_message_has_the_same_id_in_every_try_and_another_in_another_life() -> None:
    """A receiver that deduplicates would drop what an agent sends about a message whose id was pruned and used again."""
    life = MessageLife("agent", "session", "m1", 2, "2026-11-28T12:00:00.000Z")
    assert row_id("q", life, "key") == row_id("q", life, "key")
    others = [
        replace(life, seq=12),
        replace(life, timestamp="2026-11-28T13:00:00.000Z"),
        replace(life, session="other"),
    ]
    ids = {row_id("q", one, "key") for one in (life, *others)} | {row_id("q", life, "other"), row_id("n", life, "key")}
    assert len(ids) == 6
