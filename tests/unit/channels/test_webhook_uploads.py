"""The files of a request: whatever a sender says about them, what is stored has a plain name and its own bytes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.channels.webhook_uploads import files_in, read_multipart
from schema.plain_names import clean_name, looks, name_fault

TYPE = 'multipart/form-data; boundary="b"'


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    made = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return made + end


def test_fields_and_files_are_told_apart_and_bytes_stay_as_they_are() -> None:
    data = b"\r\n\r\n\0--b\r\n--\n--b\r\n"
    found = read_multipart(
        TYPE,
        form(
            ('name="text"', "grüße".encode()), ('name="tag"', b"one"), ('name="tag"', b"two"), ('name="tag"', b"three"),
            ('name="f"; filename="a.bin"', data), ('name="f"; filename=""', b""), ('name="f"; filename="b"', b""),
        ),
    )  # fmt: skip
    assert found.body == {"text": "grüße", "tag": ["one", "two", "three"]}
    assert [(one.name, one.data) for one in found.files] == [("a.bin", data), ("b", b"")]


@pytest.mark.parametrize("field", ["payload", "payload_json"])
def test_one_field_with_json_is_the_body(field: str) -> None:
    found = read_multipart(TYPE, form((f'name="{field}"', b'{"n": 1}'), ('name="x"; filename="a"', b"1")))
    assert (found.body, len(found.files)) == ({"n": 1}, 1)


@pytest.mark.parametrize(
    ("given_name", "stored"),
    [
        ("report.pdf", "report.pdf"),
        ("C:\\Users\\x\\report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        (".bashrc", "bashrc"),
        ("-rf", "rf"),
        ("a\u202egpj.exe", "agpj.exe"),
        ("a\u200bb.txt", "ab.txt"),
        ("\ufeff", "file"),
        ("..", "file"),
        ("a %22b%22.txt", 'a "b".txt'),
        ("x" * 300 + ".txt", "x" * 172 + ".txt"),
        ("報" * 100 + ".txt", "報" * 57 + ".txt"),
        ("a." + "e" * 30, "a." + "e" * 30),
    ],
)
def test_a_name_is_cleaned(given_name: str, stored: str) -> None:
    found = read_multipart(TYPE, form((f'name="f"; filename="{given_name}"', b"1")))
    assert [one.name for one in found.files] == [stored]


def test_names_that_look_the_same_get_numbers() -> None:
    names = ("a.txt", "A.TXT", "x/a.txt", "a-2.txt")
    found = read_multipart(TYPE, form(*((f'name="f"; filename="{name}"', b"1") for name in names)))
    assert [one.name for one in found.files] == ["a.txt", "A-2.TXT", "a-3.txt", "a-2-2.txt"]


# A small alphabet: what misleads, what looks like something else, what takes several bytes, and what no name may hold.
_LETTERS = st.sampled_from("aA1.-/\\ \t\n\0\u202e\u200b\u2028\ufeff\ud800\u00e9\u0301\ufb01\u5831\U0001f600")


@given(st.text(_LETTERS, max_size=300), st.sets(st.text(_LETTERS, max_size=3), max_size=3))
def test_a_cleaned_name_is_without_fault_and_its_own(given_name: str, taken: set[str]) -> None:
    looked = {looks(one) for one in taken}
    found = clean_name(given_name, looked)
    assert name_fault(found) is None, found
    assert looks(found) not in looked


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        ("multipart/form-data", form(), "no boundary"),
        (TYPE, b"", "nowhere"),
        (TYPE, b"--c\r\n\r\n--c--", "nowhere"),
        (TYPE, form(('name="f"; filename="a"', b"1"), end=b""), "cut off"),
        (TYPE, form(('name="f"; filename="a"', b"1"), end=b"--b"), "followed by something else"),
        (TYPE, b"--b\r\nX: y\r\n\r\n1\r\n--b--", "which field"),
        (TYPE, b"--b\r\nno head", "cut off|no end of its head"),
        (TYPE, b"--b\r\nContent-Disposition: form-data; name=" + b"x" * 9000 + b"\r\n\r\n1\r\n--b--", "too long"),
        (TYPE, form(*(('name="f"', b"1"),) * 201), "more than 200 parts"),
        (TYPE, form(('name="f"', b"\xff")), "utf-8"),
        (TYPE, form(('name="payload"', b'{"n": 1')), "Expecting"),
        (TYPE, form(('name="payload"', b'{"n": 1e999}')), "JSON"),
    ],
)
def test_what_is_not_a_form_is_refused(content_type: str, body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_multipart(content_type, body)


@given(st.binary(max_size=200))
def test_no_bytes_make_more_than_a_refusal(body: bytes) -> None:
    for framed in (body, b"--b\r\n" + body + b"\r\n--b--"):
        with contextlib.suppress(ValueError):
            read_multipart(TYPE, framed)


def entry(content: bytes = b"data", **changes: Any) -> dict[str, Any]:
    return {"name": "a.txt", "data": base64.b64encode(content).decode(), **changes}


def test_files_of_a_json_body_are_taken_out_of_it() -> None:
    digest = hashlib.sha256(b"data").hexdigest()
    found = files_in({"text": "x", "files": [entry(size=4, sha256=digest, mimeType="image/png"), entry(b"")]})
    assert found.body == {"text": "x"}
    assert [(one.name, one.data) for one in found.files] == [("a.txt", b"data"), ("a-2.txt", b"")]


@pytest.mark.parametrize(
    "files",
    [[], None, "a", [1], [{"name": "a"}], [{"id": "F1", "url_private": "https://x"}], [entry(), 1], {"name": "a"}],
)
def test_other_services_files_stay_in_the_body(files: object) -> None:
    assert files_in({"files": files}).body == {"files": files}
    assert files_in([files]).files == ()


@pytest.mark.parametrize(
    "changes", [{"size": 5}, {"size": "4"}, {"sha256": "0" * 64}, {"data": "no base64!"}, {"data": "YQ"}]
)
def test_a_file_that_lies_about_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        files_in({"files": [entry(**changes)]})
