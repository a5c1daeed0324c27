"""Signatures, timestamps and Retry-After by table."""

from __future__ import annotations

import pytest

from daemon.channels.signatures import matches, read_timestamp, retry_after_s, sign, sign_at, signed_request

# The example of docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries.
GITHUB_SECRET = b"It's a Secret to Everybody"
GITHUB_PAYLOAD = b"Hello, World!"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

NOW_MS = 784_111_777_000  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples


def test_githubs_published_example() -> None:
    assert sign(GITHUB_SECRET, GITHUB_PAYLOAD) == GITHUB_SIGNATURE
    assert matches(GITHUB_SECRET, GITHUB_PAYLOAD, GITHUB_SIGNATURE)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "sha256=",
        GITHUB_SIGNATURE.removeprefix("sha256="),
        GITHUB_SIGNATURE.replace("sha256", "sha1"),
        GITHUB_SIGNATURE[:-1],
        GITHUB_SIGNATURE + "0",
        GITHUB_SIGNATURE + "\n",
        GITHUB_SIGNATURE[:-1] + "8",
        "sha256=é",
        "sha256=\udce9",
    ],
)
def test_anything_else_does_not_match(given: str) -> None:
    assert not matches(GITHUB_SECRET, GITHUB_PAYLOAD, given)


def test_the_timestamp_is_signed() -> None:
    assert sign_at(b"secret", 1, b"body") == sign(b"secret", b"1.body")
    assert sign_at(b"secret", 1, b"body") != sign_at(b"secret", 2, b"body")


def test_a_request_signs_its_time_its_path_its_id_and_its_body() -> None:
    assert signed_request("1", "/hooks/a", "m.1", b"x\ny") == b"1\n/hooks/a\nm.1\nx\ny"
    assert signed_request("1", "/hooks/a", "", b"x") == b"1\n/hooks/a\n\nx"
    assert signed_request("1", "/hooks/\udcff\u20ac", "\u20ac", b"")  # nothing that a stranger sends may raise


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("784111777", True),
        ("784111477", True),
        ("784112077", True),
        ("784111476", False),
        ("784112078", False),
        ("", False),
        ("-1", False),
        ("784111777.0", False),
        (" 784111777", False),
        ("784111777\n", False),
        ("٧٨٤١١١٧٧٧", False),
        ("9" * 13, False),
        ("9" * 5000, False),
    ],
)
def test_a_timestamp_is_a_number_within_five_minutes(text: str, *, good: bool) -> None:
    assert (read_timestamp(text, NOW_MS) is not None) is good


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("86400", 86_400.0),
        ("999999999999", 86_400.0),
        ("9" * 65, None),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("²", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        ("Sun, 06 Nov 1994 08:50:37", 60.0),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 10:50:37 +0200", 60.0),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
        ("Sun Nov  6 08:50:37 1994", 60.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("Sun, 99 Nov 1994 08:50:37 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW_MS) == seconds
