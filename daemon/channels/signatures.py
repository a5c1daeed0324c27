"""HMAC-SHA256 over raw bytes, in clawbus's form and in GitHub's, and Retry-After: pure, no clock and no I/O.

Comparisons take constant time, and no result or message ever holds a secret or the signature that would have been right.

clawbus's form signs `<timestamp>.<body>`, so that an old request cannot be replayed; GitHub's signs the body alone
(docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

WINDOW_S: Final = 300
MAX_RETRY_AFTER_S: Final = 86_400.0
_PREFIX: Final = "sha256="
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}\Z", re.ASCII)
_REMEMBERED: Final = 100_000


def sign(secret: bytes, body: bytes) -> str:
    """`sha256=<hex>` over the body: the value of X-Hub-Signature-256."""
    return _PREFIX + hmac.new(secret, body, hashlib.sha256).hexdigest()


def sign_at(secret: bytes, timestamp: int, body: bytes) -> str:
    """`sha256=<hex>` over `<timestamp>.<body>`: the value of X-Clawbus-Signature. `timestamp` is epoch seconds."""
    return sign(secret, b"%d." % timestamp + body)


def matches(secret: bytes, signed: bytes, given: str) -> bool:
    """Whether `given` is the signature of `signed`. Takes the same time wherever they differ."""
    # Bytes, because compare_digest refuses text that is not ASCII, and a header may hold anything.
    return hmac.compare_digest(sign(secret, signed).encode(), given.encode("utf-8", "surrogateescape"))


def read_timestamp(text: str, now_ms: int, window_s: int = WINDOW_S) -> int | None:
    """The timestamp header as epoch seconds, if it is one and at most `window_s` seconds from now; else None."""
    if not _TIMESTAMP.match(text):
        return None
    moment = int(text)
    return moment if abs(now_ms - moment * 1000) <= window_s * 1000 else None


def retry_after_s(value: str | None, now_ms: int) -> float | None:
    """Seconds to wait by a Retry-After header: a number of seconds or an HTTP date (RFC 9110, 10.2.3).

    Never negative, at most a day. None for no header and for one that is neither.
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
    if moment.tzinfo is None:  # the format has no zone but GMT, and some senders leave it out
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment.timestamp() - now_ms / 1000, 0.0), MAX_RETRY_AFTER_S)


class SeenSignatures:
    """Remembers for the length of the window under which id each signed request came.

    The id is in a header that is not signed: without this, whoever saw a request could send it again as a new message
    by changing that header. It knows what came since the start; the window bounds what an older one may be.
    """

    def __init__(self, window_s: int = WINDOW_S, capacity: int = _REMEMBERED) -> None:
        self._keep_ms = 2 * window_s * 1000  # a timestamp may lie in the future by one window
        self._capacity = capacity
        self._seen: OrderedDict[str, tuple[int, str]] = OrderedDict()

    def claim(self, signature: str, message_id: str, now_ms: int) -> bool:
        """False when this signature came with another id before."""
        while self._seen:
            oldest, (at, _) = next(iter(self._seen.items()))
            if now_ms - at <= self._keep_ms:
                break
            del self._seen[oldest]
        if signature not in self._seen and len(self._seen) >= self._capacity:
            self._seen.popitem(last=False)
        _, first = self._seen.setdefault(signature, (now_ms, message_id))
        return first == message_id
