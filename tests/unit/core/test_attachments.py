"""Which files may come with a message, and what the message says about them."""

from __future__ import annotations

import pytest

from daemon.core.attachments import (
    Attachment,
    IntakeLimits,
    attached,
    check_attachments,
    refuse_claimed_paths,
    true_type,
)
from daemon.core.errors import AttachmentError
from daemon.store.attachments import media_type

LIMITS = IntakeLimits(max_content_bytes=1000, max_attachments=3, max_attachment_bytes=10)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", ".bashrc", "-rf", " a", "a ", "a/b", "/etc/passwd", "../a", "a\\b", "a\0b", "a\nb", "a\u200bb",
        "a\u202egpj.exe", "a\u2028b", "\ufeffa", "\ud800", "a\x7f", "x" * 201, "é" * 101,
    ],
)  # fmt: skip
def test_a_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    with pytest.raises(AttachmentError) as caught:
        check_attachments([Attachment(name, b"")], LIMITS)
    assert caught.value.hint
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a.txt", "a b.pdf", "Bericht für März.pdf", "報告.pdf", "a..b", "x" * 200])
def test_a_plain_name_is_accepted(name: str) -> None:
    check_attachments([Attachment(name, b"")], LIMITS)


@pytest.mark.parametrize("names", [("a", "a"), ("A.txt", "a.TXT"), ("\u00e9", "e\u0301"), ("\ufb01x", "fix")])
def test_two_names_that_look_the_same_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(AttachmentError, match="look the same"):
        check_attachments([Attachment(name, b"") for name in names], LIMITS)


def test_number_and_size_are_limited_and_each_limit_is_named() -> None:
    check_attachments([Attachment(name, b"123") for name in "abc"], LIMITS)
    with pytest.raises(AttachmentError, match=r"limits\.max_attachments is 3"):
        check_attachments([Attachment(name, b"") for name in "abcd"], LIMITS)
    with pytest.raises(AttachmentError, match="11 bytes together"):
        check_attachments([Attachment("a", b"123456"), Attachment("b", b"12345")], LIMITS)


def test_the_content_names_each_file() -> None:
    content = attached({"text": "look"}, "m1", [Attachment("a.svg", b"abc"), Attachment("odd", b"")], media_type)
    assert content == {
        "text": "look",
        "attachments": [
            {
                "name": "a.svg", "type": "image", "mimeType": "image/svg+xml", "size": 3, "localPath": "inbox/m1/a.svg",
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            },
            {
                "name": "odd", "type": "file", "mimeType": "application/octet-stream", "size": 0,
                "localPath": "inbox/m1/odd",
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            },
        ],
    }  # fmt: skip


@pytest.mark.parametrize("content", ["text", ["list"], None, {"attachments": []}])
def test_a_content_without_room_for_them_is_refused(content: object) -> None:
    with pytest.raises(AttachmentError):
        attached(content, "m1", [Attachment("a", b"")], media_type)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\nrest", "image/png"),
        ("a.png", b"#!/bin/sh\n", "application/octet-stream"),
        ("a.txt", b"%PDF-1.7\n", "application/pdf"),
        ("a.jpg", b"GIF89a...", "image/gif"),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        ("a.wav", b"RIFF\0\0\0\0WAVEfmt ", "audio/x-wav"),
        ("a.pdf", b"", "application/octet-stream"),
        ("a.txt", b"hello", "text/plain"),
        ("odd", b"hello", "application/octet-stream"),
    ],
)
def test_the_type_is_what_the_bytes_say_and_no_name_lies_about_it(name: str, data: bytes, expected: str) -> None:
    assert true_type(media_type(name), data) == expected


@pytest.mark.parametrize(
    "claimed",
    [
        [{"name": "a", "localPath": "../../other/in/inbox/m1/a"}],
        [{"name": "harmless"}, {"localPath": "inbox/m1/a"}],
        {"localPath": "/etc/passwd"},
    ],
)
def test_a_sender_cannot_say_where_a_file_is(claimed: object) -> None:
    with pytest.raises(AttachmentError, match="localPath") as caught:
        refuse_claimed_paths({"text": "look", "attachments": claimed})
    assert "--file" in caught.value.hint


@pytest.mark.parametrize("content", [None, [], "text", {"text": "x"}, {"attachments": [{"url": "https://x"}, 3]}])
def test_other_content_passes(content: object) -> None:
    refuse_claimed_paths(content)
