"""Ids are time-ordered and unguessable; a name that comes from outside never becomes a path unchecked."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.errors import InvalidNameError
from schema.ids import check_message_id, check_name, is_message_id, new_id

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
