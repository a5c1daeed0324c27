r"""HMAC-SHA256 signatures over raw bytes, in clawbus's and GitHub's formats, and Retry-After. Pure: no clock, no I/O.

Comparisons take constant time. No result or message ever holds a secret or the expected signature.

A request to clawbus signs `<timestamp>\\n<path>\\n<id>\\n<body>`. None of the first three can hold a newline, so no part can
be passed off as another, and an eavesdropper can only repeat the same message, which is a duplicate. An answer from
clawbus signs `<timestamp>.<body>`. GitHub signs the body alone
(docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

WINDOW_S: Final = 300
MAX_RETRY_AFTER_S: Final = 86_400.0
_PREFIX: Final = "sha256="
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}\Z", re.ASCII)


def sign(secret: bytes, body: bytes) -> str:
    """Return `sha256=<hex>` over the body: the value of X-Hub-Signature-256."""
    return _PREFIX + hmac.new(secret, body, hashlib.sha256).hexdigest()


def signed_request(timestamp: str, path: str, message_id: str, body: bytes) -> bytes:
    """Return the bytes that a request's X-Clawbus-Signature signs. `message_id` is "" when the request has none.

    `timestamp` is epoch seconds as in the header; `path` begins with /hooks/.
    """
    # ASGI decodes headers as Latin-1, and a path may hold anything: neither may raise here.
    head = (
        timestamp.encode("latin-1", "replace"),
        _bytes(path),
        message_id.encode("latin-1", "replace"),
    )
    return b"\n".join((*head, body))


def sign_at(secret: bytes, timestamp: int, body: bytes) -> str:
    """Return an answer's X-Clawbus-Signature: `sha256=<hex>` over `<timestamp>.<body>`. `timestamp` is epoch seconds."""
    return sign(secret, b"%d." % timestamp + body)


def matches(secret: bytes, signed: bytes, given: str) -> bool:
    """Return whether `given` is the signature of `signed`. The comparison takes constant time."""
    # Bytes, because compare_digest refuses text that is not ASCII, and a header may hold anything.
    return hmac.compare_digest(sign(secret, signed).encode(), _bytes(given))


def _bytes(text: str) -> bytes:
    """Return the bytes that this text was decoded from. Never raise, also for text that no bytes decode to."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def read_timestamp(text: str, now_ms: int, window_s: int = WINDOW_S) -> int | None:
    """Return the timestamp header as epoch seconds. None if it is malformed or more than `window_s` seconds from now."""
    if not _TIMESTAMP.match(text):
        return None
    moment = int(text)
    return moment if abs(now_ms - moment * 1000) <= window_s * 1000 else None


def retry_after_s(value: str | None, now_ms: int) -> float | None:
    """Return the seconds to wait, from a Retry-After header: a number of seconds or an HTTP date (RFC 9110, 10.2.3).

    Never negative, at most a day. None without a header, and for one that is neither form.
    """
    if value is None or len(value) > 64:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:  # the only time zone allowed is GMT, and some senders leave it out
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment.timestamp() - now_ms / 1000, 0.0), MAX_RETRY_AFTER_S)
